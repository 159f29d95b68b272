"""One edition of a dictionary: what its folder says at one moment, read once; nothing of it changes afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import re
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from feature_store import queries
from feature_store.dictionary_files import DictionaryCard, JsonFile, LabelSummary, Metrics
from feature_store.engine import Engine
from feature_store.lookup.bodies import densities
from feature_store.pointer import read_pointer
from feature_store.store import Store
from server.file_digests import FileState, state_of

STORE, POINTER = "store/", "store/current.json"
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
READ_FILES = ("card.json", "metrics.json", "labels.json", "training.jsonl", POINTER)
DENSITY_EDGES = np.arange(-7, 0.25, 0.25)
F = TypeVar("F", bound=JsonFile)


class Edition:
    """Card, figures and store of a dictionary that belong together. A request takes all it says from one edition."""

    def __init__(self, folder: Path, engine: Engine):
        self.card = DictionaryCard.read(folder)
        self.metrics = _read_if_there(Metrics, folder) or Metrics()
        self.training = _training_curve(folder / "training.jsonl")
        self.store = Store(folder / "store", engine)
        self.published_hashes = published_hashes(self.card, self.store.pointer)
        self.labels = self._labels_of_this_generation(folder)
        self.tag = f"{self.store.generation}-{self._content_hash()}"

    @cached_property
    def counts(self) -> dict[str, int]:
        """Features in all, alive, and labelled."""
        return queries.counts(self.store)

    @cached_property
    def densities_features(self) -> list[int]:
        """How many features have a density in each range of `DENSITY_EDGES` (decimal logarithms)."""
        return densities(self.store, DENSITY_EDGES)

    def _labels_of_this_generation(self, folder: Path) -> LabelSummary | None:
        """labels.json, unless it is about other labels: `sae interpret` writes it a moment after the generation."""
        labels = _read_if_there(LabelSummary, folder)
        counts = dict(queries.explainers_of_labels(self.store))
        if labels and {name: n for name, n in labels.labels_by_explainer.items() if n} == counts:
            return labels
        return None

    def _content_hash(self) -> str:
        """Tells two editions of one generation apart, and answers of two versions of this program."""
        parts = (self.card, self.metrics, self.labels)
        content = [version("saedex"), self.training, *(part.as_json() if part else None for part in parts)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def read_generations(folder: Path) -> dict[str, Any]:
    """The pointer of the store; raises `ValueError` if it is damaged."""
    try:
        pointer = read_pointer(folder / "store")
    except ValueError as error:
        raise ValueError(f"{POINTER}: not valid JSON ({error}).") from None
    if not isinstance(pointer, dict) or not all(isinstance(generation, dict) for generation in pointer.values()):
        raise ValueError(f"{POINTER}: an object with the generation of each kind is wanted.")
    return pointer


def published_hashes(card: DictionaryCard, generations: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of the weights and of the generations, by path in the folder; raises `ValueError` if a name is a path."""
    weights = {"weights.safetensors": card.weights_sha256} if card.weights_files is None else card.weights_files
    stores = [(generation.get("file"), generation.get("sha256")) for generation in generations.values()]
    for source, names in (("card.json", weights.items()), (POINTER, stores)):
        for name, sha256 in names:
            if not isinstance(sha256, str) or not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
                raise ValueError(f"{source}: {name!r} with {sha256!r} is no plain file name with a SHA-256.")
    return weights | {f"{STORE}{name}": sha256 for name, sha256 in stores}


def states_of(folder: Path) -> tuple[FileState | None, ...]:
    """State of every file that an edition reads; None for those that are absent."""
    return tuple(_state(f"{folder}/{name}") for name in READ_FILES)


def _state(path: str) -> FileState | None:
    try:
        return state_of(os.stat(path))
    except FileNotFoundError:
        return None


def _read_if_there(kind: type[F], folder: Path) -> F | None:
    return kind.read(folder) if (folder / kind.file_name).exists() else None


def _training_curve(path: Path) -> list[dict[str, Any]]:
    """Lines of training.jsonl; raises `ValueError` with the number of a line that is no JSON object."""
    curve = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not valid JSON ({error})") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path}: line {number} is no JSON object")
        curve.append(values)
    return curve
