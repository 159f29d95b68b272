"""Which features a table shows and in what order, worked out on the narrow columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from feature_store.lookup.columns import Columns
from feature_store.records import FeatureRow

ROWS = 2000  # of a whole table that are put together at a time
SortKey = Literal["feature", "label", "low", "score", "f2", "density", "max_act", "mean_act", "n_documents", "n_fired"]
RangeKey = Literal["low", "score", "f2", "density", "max_act", "mean_act", "n_documents", "n_fired"]
Firing = Literal["alive", "dead", "all"]


class Sort(NamedTuple):
    """A column to sort by; features without a value of it come last either way."""

    key: SortKey
    descending: bool = False


class Span(NamedTuple):
    """The least and the largest value that pass, both included; None: no bound."""

    least: float | None = None
    largest: float | None = None


class Area(NamedTuple):
    """A rectangle of the map, whose sides are between 0 and 1; its border is part of it."""

    left: float
    right: float
    bottom: float
    top: float


@dataclass(frozen=True)
class Filter:
    """Features that pass every condition that is given, sorted by some columns, then by id."""

    sort: tuple[Sort, ...] = ()
    ids: list[int] | None = None
    ranges: dict[RangeKey, Span] = field(default_factory=dict)
    explainers: tuple[str, ...] = ()  # their label comes from one of them
    words: tuple[str, ...] = ()  # their label holds all of them, whatever the case
    firing: Firing = "all"
    area: Area | None = None

    def mask(self, columns: Columns) -> Bool[np.ndarray, " features"]:
        """Which features pass."""
        passes = np.ones(columns.n, bool)
        if self.ids is not None:
            passes = np.zeros(columns.n, bool)
            passes[[feature for feature in self.ids if feature < columns.n]] = True

        for key, span in self.ranges.items():
            if span.least is not None:
                passes &= columns.numbers[key] >= span.least
            if span.largest is not None:
                passes &= columns.numbers[key] <= span.largest

        if self.explainers:
            wanted = [columns.explainers.index(name) for name in self.explainers if name in columns.explainers]
            passes &= np.isin(columns.explainer, wanted)
        for word in self.words:
            having = np.zeros(columns.n, bool)
            having[columns.having(word)] = True
            passes &= having
        if self.firing != "all":
            passes &= (columns.numbers["n_fired"] > 0) == (self.firing == "alive")

        if self.area is not None:
            x, y = columns.places
            passes &= (x >= self.area.left) & (x <= self.area.right)
            passes &= (y >= self.area.bottom) & (y <= self.area.top)

        return passes

    def found(self, columns: Columns) -> Int[np.ndarray, " found"]:
        """Ids of the features that pass, in order."""
        passes = self.mask(columns)
        if len(self.sort) <= 1:
            key, descending = self.sort[0] if self.sort else Sort("feature")
            order = columns.order(key, descending=descending)
            return order[passes[order]]
        features = np.flatnonzero(passes)
        ranks = [columns.ranks(key, descending=descending) for key, descending in self.sort]
        return features[_order([(r.numbers[features], r.size) for r in ranks], features, columns.n)]


def _order(
    ranks: list[tuple[Int[np.ndarray, " found"], int]], features: Int[np.ndarray, " found"], n: int
) -> Int[np.ndarray, " found"]:
    """The order by ranks (numbers, how many there are) of several columns, then by feature (below n).

    All of them make one number, which is sorted five times as fast as columns one after another, if it fits into 63 bits.
    """
    if math.prod(size for _, size in ranks) * n >= 1 << 63:
        return np.lexsort([numbers for numbers, _ in ranks[::-1]])
    joint = np.zeros(len(features), np.int64)
    for numbers, size in (*ranks, (features, n)):
        joint = joint * size + numbers
    return np.argsort(joint)


class Page(NamedTuple):
    """Some rows of a table, and how many there are in all and before them."""

    rows: list[FeatureRow]
    total: int
    offset: int  # rows before these


def page(columns: Columns, wanted: Filter, *, limit: int = 50, offset: int = 0, after: int | None = None) -> Page:
    """`limit` rows from `offset` on, or those that follow the feature `after` (none if it is not among them)."""
    features = wanted.found(columns)
    if after is not None:
        place = np.flatnonzero(features == after)
        offset = int(place[0]) + 1 if len(place) else len(features)
    return Page([columns.row(feature) for feature in features[offset : offset + limit].tolist()], len(features), offset)


def every_row(columns: Columns, wanted: Filter) -> Iterator[list[FeatureRow]]:
    """All rows that pass, some thousand at a time."""
    features = wanted.found(columns).tolist()
    for start in range(0, len(features), ROWS):
        yield [columns.row(feature) for feature in features[start : start + ROWS]]
