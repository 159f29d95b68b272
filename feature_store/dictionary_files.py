"""The JSON files of a dictionary folder as frozen types: the contract between training, serving and everybody's
scripts.

    card.json      DictionaryCard   what the dictionary is: weights, model, corpus, filters, versions, hashes
    metrics.json   Metrics          how good it is on held-out text
    labels.json    LabelSummary     how many features have a label, and how well labels hold up

They are written and read through these types alone. A file of an earlier format is upgraded while it is read, and one
of a later format is refused with one line.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from feature_store.atomic import write_json
from feature_store.errors import JsonFileError

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
DICTIONARY_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
DictionaryName = Annotated[str, StringConstraints(pattern=DICTIONARY_NAME)]
CARD_SHA256 = "card_sha256"


class Facts(BaseModel):
    """A frozen value; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class JsonFile(Facts):
    """A JSON file with a format version, under one name in a folder."""

    file_name: ClassVar[str]
    kind_of_folder: ClassVar[str] = "a dictionary folder such as runs/x/dictionaries/y"
    current_version: ClassVar[int]
    format_version: int

    @classmethod
    def unsealed(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        """The content without what guards it; raises `JsonFileError` if it was changed. Most files have no guard."""
        return values

    @classmethod
    def upgraded(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The content of a file of any earlier format in today's form."""
        return {"format_version": 1, **values}

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The content of the file in a dictionary folder; raises `JsonFileError`."""
        path = folder / cls.file_name
        try:
            return cls.parse(path.read_bytes(), str(path))
        except (FileNotFoundError, NotADirectoryError):
            raise JsonFileError(f"{folder}: no {cls.file_name} there. Give {cls.kind_of_folder}.") from None

    @classmethod
    def parse(cls, data: bytes, where: str) -> Self:
        """The content of bytes that came from `where`; raises `JsonFileError`."""
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise JsonFileError(f"{where}: not valid JSON ({error}).") from None

        if not isinstance(values, dict):
            raise JsonFileError(f"{where}: a JSON object is wanted, found {type(values).__name__}.")

        values = cls.upgraded(cls.unsealed(values, where))
        if values["format_version"] != cls.current_version:
            raise JsonFileError(
                f"{where}: format version {values['format_version']!r}, this saedex reads {cls.current_version}."
            )

        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            key = ".".join(map(str, problem["loc"]))
            raise JsonFileError(f"{where}: {key}: {problem['msg'][0].lower()}{problem['msg'][1:]}.") from None

    def as_json(self) -> dict[str, Any]:
        """The content as plain values; fields that were never set are left out."""
        return {"format_version": self.format_version, **self.model_dump(exclude_unset=True)}

    def write(self, folder: Path) -> None:
        """Writes the file into a dictionary folder, atomically."""
        write_json(folder / self.file_name, self.as_json())


class ModelFacts(Facts):
    """The language model whose activations the dictionary reads."""

    name: str = "unknown"
    sha256: str | None = None
    licence: str | None = None
    dtype: str | None = None
    n_layers: int | None = None
    prepend_bos: bool | None = None


class TokenizerFacts(Facts):
    """The tokenizer, by the hash of its files."""

    sha256: str
    size: int


class TextFacts(Facts):
    """How text was cut into contexts."""

    ctx_len: int | None = None
    packing: str | None = None


class FilterFacts(Facts):
    """Which positions were trained on, and in what units."""

    drop_positions: int
    special_ids_dropped: list[int]
    input_scale_folded: float
    max_norm: float | None = None
    median_norm: float
    positions_read: int
    positions_kept: int


class TrainingFacts(Facts):
    """How long the dictionary was trained, and with what optimiser."""

    activations_seen: int | None = None
    reuse: int | None = None
    optimiser: dict[str, Any] | None = None
    dead_at_end: int | None = None


class ImportFacts(Facts):
    """The foreign file that an imported dictionary was made from, and what differs from it, in words."""

    format: str
    path: str
    note: str | None = None


class Provenance(Facts):
    """Where a dictionary comes from: everything in its card that the weights themselves do not say."""

    run: str
    config_sha256: str | None = None
    seed: int | None = None
    model: ModelFacts = ModelFacts()
    tokenizer: TokenizerFacts | None = None
    corpus: dict[str, Any] | None = None
    text: TextFacts = TextFacts()
    filters: FilterFacts | None = None
    training: TrainingFacts = TrainingFacts()
    imported_from: ImportFacts | None = None


class DictionaryCard(Provenance, JsonFile):
    """card.json: what a dictionary is. `sae` holds the settings of its architecture, which each architecture owns.

    The file also holds `card_sha256`: the SHA-256 of all other fields as JSON with sorted keys. A card of
    which a digit has changed is refused, because it would give other results without a word. Cards without it are read.
    """

    file_name: ClassVar[str] = "card.json"
    current_version: ClassVar[int] = 2

    name: DictionaryName
    created: str
    d_model: int | None = Field(ge=1)  # None, as d_out: not known, because there are no weights
    d_out: int | None = Field(ge=1)
    sae: dict[str, Any]
    selection_dtype: Literal["float32", "bfloat16", "float16"]
    versions: dict[str, str]
    weights_sha256: Sha256  # without weights: of what its pages were made of
    weights_files: dict[str, Sha256] | None = None  # name to SHA-256, if the weights are in several files, or in none

    @classmethod
    def unsealed(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        """The content without `card_sha256`; raises `JsonFileError` if the rest does not have this hash."""
        content = {key: value for key, value in values.items() if key != CARD_SHA256}
        if CARD_SHA256 in values and values[CARD_SHA256] != _content_sha256(content):
            raise JsonFileError(
                f"{where}: the card was changed after it was written ({CARD_SHA256} is {values[CARD_SHA256]!r}, the other "
                f"fields give {_content_sha256(content)}). Take it again from where it comes; if you changed it on "
                f"purpose, remove the line {CARD_SHA256}."
            )
        return content

    def write(self, folder: Path) -> None:
        """Writes the card with the hash of its content, atomically."""
        content = self.as_json()
        write_json(folder / self.file_name, {**content, CARD_SHA256: _content_sha256(content)})

    @classmethod
    def upgraded(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Format 1 called its version `card_version`, and early cards had no `d_out`."""
        if values.get("card_version") != 1:
            return {"format_version": values.get("card_version"), **values}
        values = {"d_out": values.get("d_model"), **values}
        return {"format_version": 2, **{key: value for key, value in values.items() if key != "card_version"}}


def _content_sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class LossRecovered(Facts):
    """(CE_ablated - CE_spliced) / (CE_ablated - CE_clean), for two ablations."""

    zero: float
    mean: float


class Metrics(JsonFile):
    """metrics.json: figures on held-out text. Each measure adds its own; those that other code reads are named here."""

    model_config = ConfigDict(frozen=True, extra="allow")
    file_name: ClassVar[str] = "metrics.json"
    current_version: ClassVar[int] = 1

    format_version: int = 1
    text: str | None = None  # the text that the figures are of
    d_sae: int | None = None
    dead: int | None = None
    fvu: float | None = None
    fvu_typical: float | None = None
    l0: float | None = None
    ce: dict[str, float] | None = None
    ce_increase: float | None = None
    loss_recovered: LossRecovered | None = None
    measured: list[str] | None = None
    controls: dict[str, dict[str, Any]] | None = None  # the same figures of directions that nothing was learned for

    texts: dict[str, dict[str, Any]] | None = None  # the main figures on other texts, by name

    def with_text(self, name: str, figures: dict[str, Any]) -> Metrics:
        """These metrics with figures on another text."""
        return self.model_copy(update={"texts": {**(self.texts or {}), name: figures}})

    def with_controls(self, figures: dict[str, dict[str, Any]]) -> Metrics:
        """These metrics with further figures of controls."""
        known = self.controls or {}
        return self.model_copy(
            update={"controls": {name: {**known.get(name, {}), **more} for name, more in figures.items()}}
        )

    def with_figures(self, measure: str, figures: dict[str, Any]) -> Metrics:
        """These metrics with the figures of one more measure."""
        values = {**self.as_json(), **figures, "measured": sorted({*(self.measured or ()), measure})}
        if values.get("l0") == 0:  # a dictionary that is silent is dead, also after too short a training to call it so
            values["dead"] = values.get("d_sae")
        return Metrics.model_validate(values)


class JudgeCost(Facts):
    """What a judge was asked: requests answered now, answered before, unreadable; tokens read and written; the price."""

    asked: int
    cached: int
    failed: int
    prompt_tokens: int
    answer_tokens: int
    cost: float | None = None


class LabelFigures(Facts):
    """How many features have a label, by which explainer, and how well the labels hold up on the test documents.

    share_beating_chance: labels whose interval of balanced accuracy is above 0.5; share_beating_control: labels whose F2 is
    above that of 95 % of the labels of random directions.
    """

    features_alive: int
    features_labelled: int
    labels_by_explainer: dict[str, int]
    median_balanced_accuracy: float | None = None
    median_f2: float | None = None
    median_precision: float | None = None
    median_confidence: float | None = None
    share_beating_chance: float | None = None
    features_tested_against_null: int
    share_beating_null: float | None = None
    share_beating_control: float | None = None


class LabelSummary(LabelFigures, JsonFile):
    """labels.json: figures of the labels, and the same of controls: directions that nothing was learned for.

    floor: the F2 that 95 % of the labels of random directions do not exceed.
    """

    file_name: ClassVar[str] = "labels.json"
    current_version: ClassVar[int] = 1

    format_version: int = 1
    chance: float
    floor: float | None = None
    controls: dict[str, LabelFigures] = {}
    concepts: int
    concepts_second_level: int
    split: str
    seed: int
    judge: JudgeCost | None = None
