"""How the systems of this room keep what they found: as a finding in the dictionary's folder, which the explorer shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from math import isfinite
from pathlib import Path

import numpy as np

from feature_store.results.findings import FINDING_NAME, FOLDER, Cell, Column, Figure, Finding, Table
from sae.errors import ConfigError
from sae.foundation.visible import visible
from sae.interpret.intervals import Interval
from sae.publish.dictionary import read_card

DIGITS = 6
MISSING = "-"
WIDEST = 48  # characters of a cell on a terminal


def finding_folder(dictionary: Path, name: str) -> Path:
    """The folder of the finding of that name; raises `ConfigError` for a name that is none."""
    if not re.fullmatch(FINDING_NAME, name):
        raise ConfigError(
            f"--name: {name!r}; a name is lower case letters, digits, '.', '_' and '-', up to 64 of them."
        )
    return dictionary / FOLDER / name


def figure(name: str, value: float | Interval, meaning: str) -> Figure:
    """A figure; what is not a number is left out."""
    interval = value if isinstance(value, Interval) else Interval(value, float("nan"), float("nan"))
    numbers = [_rounded(x) for x in interval]
    return Figure(name=name, value=numbers[0], low=numbers[1], high=numbers[2], meaning=meaning)


def table(title: str, columns: dict[str, str], rows: Sequence[Sequence[object]], *, is_shaded: bool = False) -> Table:
    """A table of columns given as name: kind; numbers are rounded to six digits. A shaded one is shown as a picture, too."""
    return Table(
        title=title,
        is_shaded=is_shaded,
        columns=[Column(name=name, kind=kind) for name, kind in columns.items()],  # pyright: ignore[reportArgumentType]
        rows=[[_cell(cell) for cell in row] for row in rows],
    )


def write_finding(
    dictionary: Path,
    name: str,
    *,
    system: str,
    title: str,
    summary: str,
    settings: dict[str, Cell],
    figures: list[Figure],
    tables: list[Table],
) -> Finding:
    """Writes findings/NAME/finding.json of a dictionary folder, in place of one of that name, and returns it."""
    folder = finding_folder(dictionary, name)
    folder.mkdir(parents=True, exist_ok=True)
    finding = Finding(
        format_version=Finding.current_version, system=system, title=title, summary=summary,
        weights_sha256=read_card(dictionary).weights_sha256, settings=settings, figures=figures, tables=tables,
    )  # fmt: skip
    finding.write(folder)
    return finding


def _rounded(x: float) -> float | None:
    """Six digits of a number; None for what is none."""
    return float(f"{x:.{DIGITS}g}") if isfinite(x) else None


def _cell(cell: object) -> Cell:
    if isinstance(cell, float | np.floating):
        return _rounded(float(cell))
    if isinstance(cell, int | np.integer):
        return int(cell)
    if isinstance(cell, list):
        return " ".join(map(str, cell))
    return None if cell is None else str(cell)


def labels_of(dictionary: Path, features: Sequence[int]) -> dict[int, str]:
    """The labels of features as far as the dictionary has a store."""
    from feature_store.store import Store

    if not (dictionary / "store").exists():
        return {}
    with closing(Store(dictionary / "store")) as store:
        return {feature: store.columns.row(feature).label or "" for feature in features}


def as_text(finding: Finding, dictionary: Path, most_rows: int = 12) -> str:
    """A finding as people read it on a terminal: summary, figures, and the first rows of every table with labels."""
    out = [finding.summary, ""]
    for f in finding.figures:
        ends = f"  ({f.low:.4g} to {f.high:.4g})" if f.low is not None and f.high is not None else ""
        out.append(f"{f.name:<34} {MISSING if f.value is None else format(f.value, '.4g')}{ends}  {f.meaning}")
    for table in finding.tables:
        out += ["", f"{table.title} ({len(table.rows):,})", *_lines(table, dictionary, most_rows)]
    return "\n".join(visible(line) for line in out)


def _lines(table: Table, dictionary: Path, most_rows: int) -> list[str]:
    """The heading and the first rows of a table, in columns; features with their labels."""
    is_feature = [column.kind == "feature" for column in table.columns]
    first_rows = table.rows[:most_rows]
    ids = {
        cell for row in first_rows for cell, yes in zip(row, is_feature, strict=True) if yes and isinstance(cell, int)
    }
    labels = labels_of(dictionary, sorted(ids))

    def text(cell: Cell) -> str:
        return MISSING if cell is None else str(cell)[:WIDEST]

    rows = [[column.name for column in table.columns]]
    for row in first_rows:
        cells = zip(row, is_feature, strict=True)
        rows.append(
            [text(f"{c} {labels[c]}") if yes and isinstance(c, int) and c in labels else text(c) for c, yes in cells]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.ljust(width) for c, width in zip(row, widths, strict=True)).rstrip() for row in rows]
