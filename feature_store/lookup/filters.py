"""Which features a table shows and in what order, worked out on the narrow columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer

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

    def found(self, columns: Columns) -> Found:
        """The features that pass, in order."""
        passes = self.mask(columns)
        key, descending = self.sort[0] if self.sort else Sort("feature")
        order = columns.order(key, descending=descending)
        features = order[passes[order]]
        if len(self.sort) <= 1:
            return Found(features)
        return Found(features, [columns.rising(key, descending=descending)[features] for key, descending in self.sort])


class Found:
    """Features in order. `keys` are their numbers in the columns to sort by; the features come in the order of the first.

    Those that are equal in the first column are put in order when they are asked for: a page needs few of them, and
    sorting a million by two columns takes half a second.
    """

    def __init__(self, features: Integer[np.ndarray, " found"], keys: Sequence[Float[np.ndarray, " found"]] = ()):
        self._features, self._keys = features, keys

    def __len__(self) -> int:
        return len(self._features)

    def every(self) -> Integer[np.ndarray, " found"]:
        """All of them."""
        return self.part(0, len(self))

    def part(self, start: int, stop: int) -> Integer[np.ndarray, " part"]:
        """The features from one place to another."""
        stop = min(stop, len(self))
        if not self._keys or start >= stop:
            return self._features[start:stop]
        first, last = self._equal(start).start, self._equal(stop - 1).stop
        return self._sorted(slice(first, last))[start - first : stop - first]

    def place(self, feature: int) -> int | None:
        """The place of a feature; None if it is not among them."""
        places = np.flatnonzero(self._features == feature)
        if not len(places) or not self._keys:
            return int(places[0]) if len(places) else None
        equal = self._equal(int(places[0]))
        return equal.start + int(np.flatnonzero(self._sorted(equal) == feature)[0])

    def _equal(self, place: int) -> slice:
        """The places of the features that have the value of one of them in the first column."""
        values = self._keys[0]
        return slice(*(int(np.searchsorted(values, values[place], side)) for side in ("left", "right")))

    def _sorted(self, places: slice) -> Integer[np.ndarray, " some"]:
        features = self._features[places]
        return features[np.lexsort([features, *(key[places] for key in self._keys[::-1])])]


class Page(NamedTuple):
    """Some rows of a table, and how many there are in all and before them."""

    rows: list[FeatureRow]
    total: int
    offset: int  # rows before these


def page(columns: Columns, wanted: Filter, *, limit: int = 50, offset: int = 0, after: int | None = None) -> Page:
    """`limit` rows from `offset` on, or those that follow the feature `after` (none if it is not among them)."""
    features = wanted.found(columns)
    if after is not None:
        place = features.place(after)
        offset = len(features) if place is None else place + 1
    return Page(
        [columns.row(feature) for feature in features.part(offset, offset + limit).tolist()], len(features), offset
    )


def every_row(columns: Columns, wanted: Filter) -> Iterator[list[FeatureRow]]:
    """All rows that pass, some thousand at a time."""
    features = wanted.found(columns).every().tolist()
    for start in range(0, len(features), ROWS):
        yield [columns.row(feature) for feature in features[start : start + ROWS]]
