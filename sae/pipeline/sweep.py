"""A grid of dictionaries written as one entry of `sae:`; all train on the same harvest."""

from __future__ import annotations

from itertools import product
from typing import Any

MOST = 256


def expand(entries: Any) -> Any:
    """`entries` in which every entry with a `grid` is replaced by one entry per combination of its values.

    An entry's `name` may hold settings in braces, such as "{architecture}-k{k}"; without them the combination is
    appended. Raises `ValueError` if a grid is not lists of values. Anything else is left to be refused later.
    """
    if isinstance(entries, dict):
        entries = [entries]
    if not isinstance(entries, list | tuple):
        return entries

    entries_out: list[Any] = []
    for number, entry in enumerate(entries):
        entries_out += _expanded(entry, number) if isinstance(entry, dict) and "grid" in entry else [entry]

    if len(entries_out) > MOST:
        raise ValueError(f"{len(entries_out)} dictionaries; a run may train {MOST} at once")

    return entries_out


def _expanded(entry: dict[str, Any], number: int) -> list[dict[str, Any]]:
    grid = entry["grid"]
    if not isinstance(grid, dict) or not grid or not all(isinstance(v, list | tuple) and v for v in grid.values()):
        raise ValueError(f"entry {number}: grid maps settings to lists of values, such as grid: {{k: [16, 32]}}")

    both = sorted({*grid} & {*entry})
    if both:
        raise ValueError(f"entry {number}: {', '.join(both)} is given both in the grid and beside it")

    shared = {key: value for key, value in entry.items() if key != "grid"}
    combinations = []
    for values in product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        combinations.append({**shared, **chosen, "name": _named(str(shared.get("name", "sae")), shared, chosen)})

    return combinations


def _named(template: str, shared: dict[str, Any], chosen: dict[str, Any]) -> str:
    if "{" not in template:
        template += "".join(f"-{key.replace('_', '-')}-{{{key}}}" for key in chosen)
    try:
        return template.format(**{**shared, **chosen}).lower()
    except (KeyError, IndexError, ValueError):
        known = ", ".join(key for key in (*shared, *chosen) if key != "name")
        raise ValueError(f"name {template!r}: the settings in braces have to be of this entry: {known}") from None
