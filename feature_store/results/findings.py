"""finding.json: what a system of `sae.apply` found about a dictionary, one folder per finding under `findings/`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from feature_store.dictionary_files import DICTIONARY_NAME, Facts, JsonFile, Sha256

FOLDER = "findings"
FINDING_NAME = DICTIONARY_NAME
Cell = str | int | float | None


class Figure(Facts):
    """One number with its 95 % interval, where it has one, and what it means."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    meaning: str


class Column(Facts):
    """A column of a table; a `feature` is an id of the dictionary, which the explorer links."""

    name: str
    kind: Literal["text", "number", "feature", "features"] = "number"


class Table(Facts):
    """Rows of a finding; a cell of several features is their ids with spaces between them.

    In a shaded table all numbers are of one kind, and the explorer colours them by size.
    """

    title: str
    is_shaded: bool = False
    columns: list[Column]
    rows: list[list[Cell]]


class Finding(JsonFile):
    """finding.json: figures and tables, with the settings and inputs that they come from."""

    file_name: ClassVar[str] = "finding.json"
    kind_of_folder: ClassVar[str] = "a folder that a command such as `sae contrast` wrote"
    current_version: ClassVar[int] = 1

    system: str = Field(description="The command that made it.")
    title: str
    summary: str = Field(description="What came out, in a sentence or two.")
    weights_sha256: Sha256 = Field(description="The weights that it speaks of.")
    settings: dict[str, Cell] = Field(description="Settings and inputs, by name; files by name and hash.")
    figures: list[Figure]
    tables: list[Table]


def findings_of(folder: Path) -> dict[str, Path]:
    """The folders of a dictionary's findings, by name."""
    files = sorted((folder / FOLDER).glob(f"*/{Finding.file_name}"))
    return {path.parent.name: path.parent for path in files}


def rows_about(table: Table, feature: int) -> list[list[Cell]]:
    """The rows of a table that name a feature."""
    kinds = [column.kind for column in table.columns]

    def names(row: list[Cell]) -> bool:
        return any(
            (kind == "feature" and cell == feature) or (kind == "features" and str(feature) in str(cell).split())
            for kind, cell in zip(kinds, row, strict=True)
        )

    return [row for row in table.rows if names(row)]
