"""The narrow columns of every feature, held in memory: what tables are filtered by, sorted by and searched in."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any, Protocol

import duckdb
import numpy as np
from jaxtyping import Float, Int, Integer

from feature_store.records import FeatureRow

NUMBERS = {
    "density": "f.density",
    "n_fired": "f.n_fired",
    "mean_act": "f.mean_act",
    "max_act": "f.max_act",
    "n_documents": "f.n_documents",
    "score": "l.score",
    "low": "l.low",
    "high": "l.high",
    "n_pos": "l.n_pos",
    "f2": "l.f2",
    "strong_share": "f.n_strong / nullif(f.n_fired, 0)",
}
COUNTS = ("n_fired", "n_documents", "n_pos")
WORD = re.compile(r"\w{3,}")
SHORT = 3  # bytes of a needle that nearly every text holds


class Source(Protocol):
    """What the columns are read from: a store."""

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A cursor for its tables."""
        ...


class Texts:
    """One text per row, in one piece of memory."""

    def __init__(self, texts: list[str]):
        pieces = [text.replace("\n", " ").encode() for text in texts]
        self.data = b"\n".join(pieces) + b"\n" if pieces else b""
        self.ends = np.cumsum([len(piece) + 1 for piece in pieces], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return self.data[start : int(self.ends[row]) - 1].decode()

    def containing(self, part: str) -> Int[np.ndarray, " rows"]:
        """The rows whose text holds `part`, ascending."""
        needle = part.replace("\n", " ").encode()
        places = self._places(needle)
        return np.unique(np.searchsorted(self.ends, places, side="right"))

    def _places(self, needle: bytes) -> Int[np.ndarray, " places"]:
        if len(needle) <= SHORT:
            array = np.frombuffer(self.data, np.uint8)
            size = max(len(array) - len(needle) + 1, 0)
            matches = np.ones(size, bool)
            for number, value in enumerate(needle):
                matches &= array[number : number + size] == value
            return np.flatnonzero(matches)

        places, place = [], self.data.find(needle)
        while place >= 0:
            places.append(place)
            place = self.data.find(needle, place + len(needle))
        return np.array(places, np.int64)


class Columns:
    """Columns by feature id, which are 0, 1, ... n - 1. A figure that a feature lacks is nan."""

    def __init__(self, source: Source):
        names = ", ".join(f"{sql} as {name}" for name, sql in NUMBERS.items())
        query = f"select {names} from feature f left join label l using (feature) order by f.feature"
        columns: dict[str, Any] = source.cursor().execute(query).fetchnumpy()
        self.numbers: dict[str, Float[np.ndarray, " features"]] = {
            name: np.ma.filled(np.ma.asarray(column, np.float64), np.nan) for name, column in columns.items()
        }
        self.n = len(self.numbers["density"])
        labels = source.cursor().execute("select feature, explainer, text from label order by feature").fetchall()
        self.labelled = np.zeros(self.n, bool)
        self.labelled[[row[0] for row in labels]] = True
        self.explainers = sorted({row[1] for row in labels})
        number = {name: index for index, name in enumerate(self.explainers)}
        self.explainer = np.full(self.n, -1, np.int16)
        self.explainer[self.labelled] = [number[row[1]] for row in labels]
        texts = dict.fromkeys(range(self.n), "") | {row[0]: row[2] for row in labels}
        self.labels = Texts([texts[feature] for feature in range(self.n)])
        self._orders: dict[str, Integer[np.ndarray, " features"]] = {}

    @cached_property
    def lower_labels(self) -> Texts:
        """Labels in lower case, to search in."""
        return Texts([self.labels[feature].lower() for feature in range(self.n)])

    @cached_property
    def label_words(self) -> frozenset[str]:
        """Every word of three letters or more in the labels, in lower case."""
        return frozenset(WORD.findall(self.lower_labels.data.decode()))

    def row(self, feature: int) -> FeatureRow:
        """One feature as a table shows it."""
        values = {name: float(column[feature]) for name, column in self.numbers.items()}
        numbers = {
            name: None if value != value else int(value) if name in COUNTS else value for name, value in values.items()
        }
        label, explainer = None, None
        if self.labelled[feature]:
            label, explainer = self.labels[feature], self.explainers[self.explainer[feature]]
        return FeatureRow(feature=feature, label=label, explainer=explainer, **numbers)  # type: ignore[arg-type]

    def order(self, key: str, *, descending: bool = False) -> Integer[np.ndarray, " features"]:
        """All features by a column; those of equal value by id, and those without a value last."""
        name = f"{key} {descending}"
        if name not in self._orders:
            values = self.sortable(key)
            self._orders[name] = np.argsort(-values if descending else values, kind="stable")
        return self._orders[name]

    def sortable(self, key: str) -> Float[np.ndarray, " features"]:
        """Numbers that are in the order of a column; nan where a feature has no value."""
        if key == "feature":
            return np.arange(self.n, dtype=np.float64)
        return self._label_ranks if key == "label" else self.numbers[key]

    @cached_property
    def _label_ranks(self) -> Float[np.ndarray, " features"]:
        texts = {text: 0.0 for feature in np.flatnonzero(self.labelled).tolist() if (text := self.labels[feature])}
        ranks = {text: float(rank) for rank, text in enumerate(sorted(texts))}
        return np.array([ranks.get(self.labels[feature], np.nan) for feature in range(self.n)], np.float64)

    def having(self, word: str) -> Integer[np.ndarray, " features"]:
        """The features whose label holds `word`, whatever the case."""
        return self.lower_labels.containing(word.lower())
