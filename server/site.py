"""A site of some features: the explorer with files in place of the API, for any file server."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import orjson

from feature_store.people.database import People
from server.app import STATIC, create_app
from server.catalogue import Catalogue, CatalogueError, Entry, open_catalogue
from server.people.finding import features_with

API = "/api/v1"
MARK = '<meta name="saedex" content="site" />'  # tells the explorer that it reads files
ROWS = 200  # of the table, asked at a time
SITE_EXAMPLES = 6


class SiteError(Exception):
    """A selection that is empty, or a folder that is there already."""


@dataclass(frozen=True)
class Selection:
    """Which features a site shows: numbers, somebody's list or tag, or those with the best scores."""

    features: list[int] = field(default_factory=list)
    in_list: str | None = None
    tag: str | None = None
    best: int = 100

    def of(self, entry: Entry, people: People | None) -> list[int]:
        """The features of a dictionary that are chosen, each once."""
        edition = entry.edition()
        columns = edition.store.columns
        chosen = [feature for feature in self.features if feature < columns.n]
        if people and (self.in_list or self.tag):
            weights = edition.card.weights_sha256
            chosen += features_with(people, weights, None, self.in_list) if self.in_list else []
            chosen += features_with(people, weights, self.tag, None) if self.tag else []
        if not (self.features or self.in_list or self.tag):
            low = columns.numbers["low"]
            order = columns.order("low", descending=True)
            chosen = order[~np.isnan(low[order])][: self.best].tolist()
        return list(dict.fromkeys(chosen))


def write_site(paths: list[Path], selection: Selection, target: Path, people_file: Path | None) -> dict[str, int]:
    """Writes the site into a new folder; returns how many features of each dictionary it shows.

    The bodies are those of the API, asked of the application itself. Raises `SiteError`, `CatalogueError` or `PeopleError`.
    """
    if target.exists():
        raise SiteError(f"{target}: there already. A site is written into a new folder; remove it or name another.")
    if not (STATIC / "index.html").exists():
        raise SiteError(f"{STATIC}: the explorer is not built. Run `make ui`, or install the wheel.")
    catalogue = open_catalogue(paths)
    if catalogue.damage:
        raise CatalogueError("; ".join(f"{damage.folder}: {damage.problem}" for damage in catalogue.damage))
    people = People(people_file) if people_file else None
    chosen = {entry.id: features for entry in catalogue.entries() if (features := selection.of(entry, people))}
    if not chosen:
        raise SiteError("no feature of these dictionaries is chosen; give --features, --list, --tag or --best.")

    building = target.with_name(f"{target.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    shutil.copytree(STATIC, building)
    index = building / "index.html"
    index.write_text(index.read_text(encoding="utf-8").replace("<head>", f"<head>{MARK}", 1), encoding="utf-8")
    asyncio.run(_write_bodies(catalogue, people, chosen, building))
    building.rename(target)

    return {name: len(features) for name, features in chosen.items()}


async def _write_bodies(
    catalogue: Catalogue, people: People | None, chosen: dict[str, list[int]], folder: Path
) -> None:
    transport = httpx.ASGITransport(create_app(catalogue, people=people))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=600) as client:

        async def ask(path: str, **values: Any) -> Any:
            return (await client.get(f"{API}{path}", params=values)).raise_for_status().json()

        summaries = await ask("/dictionaries")
        _write(folder, "/dictionaries", [summary for summary in summaries if summary["id"] in chosen])
        _write(folder, "/people", {"on": people is not None, "person": None, "scopes": []})
        _write(folder, "/damage", [])
        for name, features in chosen.items():
            place = f"/dictionaries/{quote(name, safe='')}"
            _write(folder, place, await ask(place))
            await _write_lists(folder, place, features, ask)
            for path in _feature_paths(place, features, with_people=people is not None):
                _write(folder, path, await ask(path))


async def _write_lists(folder: Path, place: str, features: list[int], ask: Any) -> None:
    """The table of all features that are shown, and what of it the overview shows."""
    rows: list[dict[str, Any]] = []
    page: dict[str, Any] = {}
    for start in range(0, len(features), ROWS):
        ids = ",".join(map(str, features[start : start + ROWS]))
        page = await ask(f"{place}/features", ids=ids, limit=ROWS, snippets=True)
        rows += page["items"]
    order = {feature: number for number, feature in enumerate(features)}
    rows.sort(key=lambda row: order[row["feature"]])
    table = page | {"items": rows, "total": len(rows), "next_after": None, "limit": len(rows)}
    _write(folder, f"{place}/features", table)
    _write(folder, f"{place}/examples", table | {"items": rows[:SITE_EXAMPLES]})

    shown = set(features)
    concepts = await ask(f"{place}/concepts")
    for concept in concepts["items"]:
        concept["features"] = [member for member in concept["features"] if member["feature"] in shown]
    _write(folder, f"{place}/concepts", concepts | {"items": [c for c in concepts["items"] if c["features"]]})

    scatter = await ask(f"{place}/scatter")
    inside = [n for n, feature in enumerate(scatter["features"]) if feature in shown]
    _write(folder, f"{place}/scatter", {name: [column[n] for n in inside] for name, column in scatter.items()})


def _feature_paths(place: str, features: list[int], *, with_people: bool) -> Iterator[str]:
    for feature in features:
        for ending in ("", "/contexts", "/judged", *(("/people",) if with_people else ())):
            yield f"{place}/features/{feature}{ending}"


def _write(folder: Path, path: str, body: Any) -> None:
    file = folder / f"{API}{path}.json".lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(orjson.dumps(body))
