"""The narrow columns of every feature, held in memory: what tables are filtered by, sorted by and searched in."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, Self

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
ROWS = 65_536  # of labels, joined at a time
BREAK, LINE_BREAK = "\n", 10
SHORT = 3  # bytes of a needle that nearly every text holds


class Texts:
    """One text per row, in one piece of memory; `data` holds them in UTF-8, each with a line break after it."""

    def __init__(self, data: bytes):
        self.data = data
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == LINE_BREAK) + 1
        self.ends = ends.astype(np.uint32) if len(data) < 1 << 32 else ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """The texts; line breaks in them become spaces."""
        return cls("".join(f"{text.replace(BREAK, ' ')}{BREAK}" for text in texts).encode())

    def __len__(self) -> int:
        return len(self.ends)

    def lower(self) -> Self:
        """The same in lower case."""
        starts = [0, *self.ends[ROWS - 1 : -1 : ROWS].tolist(), len(self.data)]
        blocks = (self.data[start:end].decode().lower().encode() for start, end in itertools.pairwise(starts))
        return type(self)(b"".join(blocks))

    def __getitem__(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return self.data[start : int(self.ends[row]) - 1].decode()

    def containing(self, part: str) -> Int[np.ndarray, " rows"]:
        """The rows whose text holds `part`, ascending."""
        needle = part.replace(BREAK, " ").encode()
        rows = np.searchsorted(self.ends, self._places(needle), side="right")
        return rows[np.concatenate([[True], rows[1:] != rows[:-1]])] if len(rows) else rows

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


def _texts(cursor: duckdb.DuckDBPyConnection) -> Texts:
    """The labels of all features; those without one have an empty one. DuckDB joins them, some thousand at a time."""
    rows = (
        "select feature, coalesce(replace(text, chr(10), ' '), '') as text from feature left join label using (feature)"
    )
    query = f"select string_agg(text, chr(10) order by feature) from ({rows}) group by feature // {ROWS} order by min(feature)"
    blocks = []
    for (block,) in cursor.execute(query).fetchall():
        blocks += [block.encode(), BREAK.encode()]
    return Texts(b"".join(blocks))


class Columns:
    """Columns by feature id, which are 0, 1, ... n - 1. A figure that a feature lacks is nan."""

    def __init__(self, cursor: Callable[[], duckdb.DuckDBPyConnection], loading: duckdb.DuckDBPyConnection):
        """`loading` is used here and no longer; `cursor` gives others, for what is asked for later."""
        self._cursor = cursor
        explainers = loading.execute("select distinct explainer from label order by explainer").fetchall()
        self.explainers: list[str] = [row[0] for row in explainers]
        names = ", ".join(f"{sql} as {name}" for name, sql in NUMBERS.items())
        number = "coalesce(list_position(?::varchar[], l.explainer), 0) as explainer"
        query = f"select {names}, {number} from feature f left join label l using (feature) order by f.feature"
        columns: dict[str, Any] = loading.execute(query, [self.explainers]).fetchnumpy()
        self.explainer = np.asarray(columns.pop("explainer"), np.int16) - 1  # -1: no label
        self.labelled = self.explainer >= 0
        self.numbers: dict[str, Float[np.ndarray, " features"]] = {
            name: np.ma.filled(np.ma.asarray(column, np.float64), np.nan) for name, column in columns.items()
        }
        self.n = len(self.explainer)
        self.labels = _texts(loading)
        self._orders: dict[str, Integer[np.ndarray, " features"]] = {}

    @cached_property
    def places(self) -> Float[np.ndarray, "2 features"]:
        """x and y of every feature on the map, between 0 and 1; nan for those that are not on it."""
        columns: dict[str, Any] = self._cursor().execute("select feature, x, y from place").fetchnumpy()
        places = np.full((2, self.n), np.nan, np.float32)
        places[:, columns["feature"]] = columns["x"], columns["y"]
        return places

    @cached_property
    def lower_labels(self) -> Texts:
        """Labels in lower case, to search in."""
        return self.labels.lower()

    @cached_property
    def label_words(self) -> frozenset[str]:
        """Every word of three letters or more in the labels, in lower case."""
        return frozenset(WORD.findall(self.lower_labels.data.decode()))

    def label(self, feature: int) -> str | None:
        """The label of a feature; None without one."""
        return self.labels[feature] if self.labelled[feature] else None

    def row(self, feature: int) -> FeatureRow:
        """One feature as a table shows it."""
        values = {name: float(column[feature]) for name, column in self.numbers.items()}
        numbers = {
            name: None if value != value else int(value) if name in COUNTS else value for name, value in values.items()
        }
        explainer = self.explainers[self.explainer[feature]] if self.labelled[feature] else None
        return FeatureRow(feature=feature, label=self.label(feature), explainer=explainer, **numbers)  # type: ignore[arg-type]

    def order(self, key: str, *, descending: bool = False) -> Integer[np.ndarray, " features"]:
        """All features by a column; those of equal value by id, and those without a value last."""
        name = f"{key} {descending}"
        if name not in self._orders:
            self._orders[name] = np.argsort(self.rising(key, descending=descending), kind="stable").astype(np.uint32)
        return self._orders[name]

    def rising(self, key: str, *, descending: bool) -> Float[np.ndarray, " features"]:
        """Numbers that rise in the order of a column."""
        return -self.sortable(key) if descending else self.sortable(key)

    def sortable(self, key: str) -> Float[np.ndarray, " features"]:
        """Numbers that are in the order of a column; nan where a feature has no value."""
        if key == "feature":
            return np.arange(self.n, dtype=np.float64)
        return self._label_ranks if key == "label" else self.numbers[key]

    @cached_property
    def _label_ranks(self) -> Float[np.ndarray, " features"]:
        query = "select feature, dense_rank() over (order by text) as rank from label"
        columns: dict[str, Any] = self._cursor().execute(query).fetchnumpy()
        ranks = np.full(self.n, np.nan)
        ranks[columns["feature"]] = columns["rank"]
        return ranks

    def having(self, word: str) -> Integer[np.ndarray, " features"]:
        """The features whose label holds `word`, whatever the case."""
        return self.lower_labels.containing(word.lower())
