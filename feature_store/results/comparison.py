"""comparison.json: how the features of two dictionaries correspond, one file per pair under `comparisons/`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from feature_store.dictionary_files import Facts, JsonFile, Sha256

FOLDER = "comparisons"
Kind = Literal["matched", "split", "merged", "near", "alone", "dead"]
KINDS: tuple[Kind, ...] = ("matched", "split", "merged", "near", "alone", "dead")


class Side(Facts):
    """One dictionary's features against the other's, in columns by feature."""

    dictionary: str
    weights_sha256: Sha256
    nearest: list[int]  # the other's feature of the largest cosine
    cosine: list[float]
    correlation: list[
        float | None
    ]  # of both activations over the tokens; None where one never fires, or without tokens
    kind: list[int]  # index into KINDS

    def counts(self) -> dict[Kind, int]:
        """How many features are of each kind."""
        return {kind: self.kind.count(number) for number, kind in enumerate(KINDS)}


class Twin(Facts):
    """What two seeds alone differ: the share of features that are matched with a twin of the first dictionary."""

    dictionary: str
    matched: float


class Comparison(JsonFile):
    """comparison.json."""

    file_name: ClassVar[str] = "comparison.json"
    kind_of_folder: ClassVar[str] = "a folder that `sae compare` wrote"
    current_version: ClassVar[int] = 1

    this: Side
    other: Side
    found: float = Field(description="Cosine from which on a feature is found again.")
    random_cosine: float = Field(description="Cosine that the best match of 95 % of random directions stays below.")
    random_correlation: float | None = Field(description="Correlation that 95 % of pairs drawn at random stay below.")
    tokens: int
    twin: Twin | None = None


def comparisons_of(folder: Path) -> dict[str, Path]:
    """The folders of a dictionary's comparisons, by the id of the other dictionary."""
    files = sorted((folder / FOLDER).glob(f"*/{Comparison.file_name}"))
    return {path.parent.name: path.parent for path in files}
