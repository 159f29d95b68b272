"""Events: tokens in the window around them, on which a feature fires or does not. Labels are tested on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from feature_store import evidence_queries, queries
from feature_store.indexing.contexts import level_edges
from feature_store.indexing.formats import CLASSES, breaks_line, classes_of, position_bin
from feature_store.indexing.negatives import NEGATIVE
from feature_store.packing import GROUPS, RANDOM, Pack
from feature_store.store import Store

RECENT, RECENT_SILENT = 1 << 17, 16


class Source(NamedTuple):
    """Where a window is stored: with a feature, by its number there, or among the random ones (`packing.RANDOM`)."""

    feature: int
    number: int


NOWHERE = Source(RANDOM, 0)  # of a window that is made up


@dataclass(frozen=True, eq=False, slots=True)
class Event:
    """A token (`peak`) in its window. `act` and `acts` belong to the feature whose window it is."""

    ids: tuple[int, ...]
    peak: int
    place: int  # tokens since the start of the document
    document: int
    is_test: bool  # whether the document is kept for testing
    act: float
    acts: tuple[float, ...]
    group: str  # "top", "stratum", "uniform" or "random"
    inclusion: float
    source: Source = NOWHERE


class Events:
    """Activating windows, hard negatives and random windows of a store, decoded on first use."""

    def __init__(self, store: Store):
        self.store = store
        self._negatives = evidence_queries.negatives(store)
        self._packs: dict[int, Pack] = dict(queries.packs(store, 0, len(self._negatives)))
        self.test_documents = evidence_queries.documents_in_test_part(store)
        size = max(store.vocabulary.tokens, default=-1) + 1
        vocabulary = [store.vocabulary.tokens.get(token, b"") for token in range(size)]
        self._classes, self._breaks = classes_of(vocabulary), breaks_line(vocabulary)
        self._text = lru_cache(RECENT)(self._decode)
        self.activating = lru_cache(RECENT // 32)(self._activating)
        self._negative = lru_cache(RECENT // 8)(self._window)
        self._starts = lru_cache(RECENT // 32)(self._starts_of)
        self.random: list[Event] = []
        self.random_firing: dict[int, set[int]] = {}  # feature -> indices of the random windows in which it fires

        for number, window in enumerate(queries.random_windows(store)):
            self.random.append(Event(
                tuple(window.token_ids.tolist()), window.peak, window.place, window.document,
                is_test=window.document in self.test_documents, act=0.0, acts=(), group="random", inclusion=1.0,
                source=Source(RANDOM, number),
            ))  # fmt: skip
            for feature in window.latents.tolist():
                self.random_firing.setdefault(feature, set()).add(number)

        self.random_silent = lru_cache(RECENT_SILENT)(self._random_silent)

    def _activating(self, feature: int) -> list[Event]:
        """Windows of one feature: the top ones by rank, then its strata; one event per place in the text."""
        return self._stored(feature, ("top", "stratum"))

    def uniform(self, feature: int) -> list[Event]:
        """Windows of test documents drawn uniformly from those in which a feature reaches a global level of 5 or more."""
        return self._stored(feature, ("uniform",))

    def _stored(self, feature: int, groups: tuple[str, ...]) -> list[Event]:
        windows = self._packs[feature].windows
        wanted = np.isin(windows["group"], [GROUPS.index(group) for group in groups])
        events, places = [], set()

        for number in np.flatnonzero(wanted).tolist():
            key = int(windows["context"][number]), int(windows["place"][number])
            if key not in places:
                places.add(key)
                events.append(self._window(feature, number))

        return events

    def _starts_of(self, feature: int) -> tuple[list[int], list[int]]:
        """Where the tokens and the activations of every stored window of a feature start."""
        windows = self._packs[feature].windows
        tokens, acts = (np.cumsum(windows[name], dtype=np.int64) - windows[name] for name in ("length", "n_acts"))
        return tokens.tolist(), acts.tolist()

    def _window(self, feature: int, number: int) -> Event:
        """The event of one stored window of a feature."""
        pack = self._packs[feature]
        w = pack.windows[number]
        length, peak, document = int(w["length"]), int(w["peak"]), int(w["document"])
        start, first = (starts[number] for starts in self._starts(feature))
        fired = slice(first, first + int(w["n_acts"]))
        acts = [0.0] * length
        for place, act in zip(pack.act_places[fired].tolist(), pack.act_values[fired].tolist(), strict=True):
            acts[place] = act
        return Event(
            tuple(pack.token_ids[start : start + length].tolist()), peak, int(w["place"]), document,
            is_test=document in self.test_documents, act=acts[peak], acts=tuple(acts), group=GROUPS[w["group"]],
            inclusion=float(w["inclusion"]), source=Source(feature, number),
        )  # fmt: skip

    def hard_negatives(self, feature: int) -> list[Event]:
        """Strongest windows of the nearest features, by cosine and by firing, in which this one does not fire."""
        records = np.frombuffer(self._negatives[feature], NEGATIVE)
        # A feature's pack begins with its top windows by rank, so that a rank is a number.
        return list(map(self._negative, records["source"].tolist(), records["rank"].tolist()))

    def _random_silent(self, feature: int) -> list[Event]:
        """Random windows in which the feature does not fire."""
        firing = self.random_firing.get(feature, ())
        return [event for number, event in enumerate(self.random) if number not in firing]

    def text(self, event: Event) -> str:
        """The window as text."""
        return self._text(event.ids)

    def _decode(self, ids: tuple[int, ...]) -> str:
        token_bytes = self.store.vocabulary.tokens
        return b"".join(token_bytes.get(token, b"") for token in ids).decode("utf-8", "replace")

    def format_of(self, event: Event) -> int:
        """Index into `FORMATS` of the event's token."""
        starts = event.place == 0 or (event.peak > 0 and bool(self._breaks[event.ids[event.peak - 1]]))
        return int(self._classes[event.ids[event.peak]]) + len(CLASSES) * starts

    def position_of(self, event: Event) -> int:
        """Index into `POSITION_EDGES` of the event's place."""
        return int(position_bin(np.array(event.place)))


def activation_levels(store: Store) -> Float[np.ndarray, " edges"]:
    """The nine activations between the ten global levels of a store."""
    histogram = np.sum([f.histogram for f in queries.all_features(store)], axis=0).astype(np.float64)
    return level_edges(histogram, np.array(store.meta["log2_edges"]))


def level_of(act: float, edges: Float[np.ndarray, " edges"]) -> int:
    """Global activation level 1..10 of a firing, 0 of silence."""
    return 0 if act <= 0 else 1 + int(np.searchsorted(edges, act))
