"""What a scorer is: from a feature, or an explanation of it, with its evidence to figures with intervals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from math import nan
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from feature_store.packing import FIRES, SILENT, UNREADABLE
from feature_store.records import JudgedWindow
from sae.interpret.events import Event
from sae.interpret.evidence import Evidence
from sae.interpret.explainers import EXPLAINERS
from sae.interpret.intervals import Interval
from sae.interpret.live_dictionary import LiveDictionary

E = TypeVar("E")


class Label(NamedTuple):
    """An explanation that can be put to the test by its rule alone."""

    feature: int
    explainer: str
    text: str
    rule: frozenset[Hashable]

    def matches(self, evidence: Evidence, event: Event) -> bool:
        """Whether the rule says that the feature fires on the event."""
        return not self.rule.isdisjoint(EXPLAINERS[self.explainer].items(evidence, event))


class Matcher:
    """Some events, and which of them labels match; what labels of one explainer look at is read once."""

    def __init__(self, evidence: Evidence, events: list[Event]):
        self._evidence, self.events = evidence, events
        self._items: dict[str, list[frozenset[Hashable]]] = {}

    def matches(self, label: Label) -> list[bool]:
        """Whether the label's rule says that its feature fires, for every event."""
        if label.explainer not in self._items:
            explainer = EXPLAINERS[label.explainer]
            self._items[label.explainer] = [explainer.items(self._evidence, event) for event in self.events]
        return [not label.rule.isdisjoint(items) for items in self._items[label.explainer]]


N_NULL_LABELS = 19  # others' labels that a label must beat to beat the shuffled null at 95 %


@dataclass(frozen=True)
class ScoringCase:
    """What a scorer reads: the feature, its chosen label (None if nothing explains it), and labels of other features."""

    evidence: Evidence
    feature: int
    label: Label | None
    others: tuple[Label, ...]
    levels: Float[np.ndarray, " edges"]  # activations between the global levels
    seed: int
    live_dictionary: Callable[[], LiveDictionary]  # the dictionary and its language model, loaded when first asked for

    def generator(self) -> np.random.Generator:
        """Random numbers that depend on the seed and the feature only."""
        return np.random.default_rng((self.seed, self.feature))

    def drawn(self, events: list[E], most: int) -> list[E]:
        """At most `most` of the events, drawn without replacement."""
        if len(events) <= most:
            return events
        return [events[i] for i in np.sort(self.generator().permutation(len(events))[:most])]

    def part(self, events: list[Event], test: bool) -> list[Event]:
        """The events of the test documents, or of the explain documents."""
        return [e for e in events if e.is_test == test]


class Figure(NamedTuple):
    """One figure with what chance and the lexical baseline would reach. Failures count; they are not left out."""

    metric: str
    interval: Interval
    chance: float
    n_pos: int
    n_neg: int
    n_failed: int = 0
    baseline: float = nan
    windows: tuple[JudgedWindow, ...] = ()  # that were read, where a reader may look at them


def judged_window(event: Event, fires: bool, said: bool | None) -> JudgedWindow:
    """A window with the truth and what was said of it; None: an answer that could not be read."""
    return JudgedWindow(*event.source, fires=fires, said=UNREADABLE if said is None else FIRES if said else SILENT)


class Scorer(ABC):
    """Figures about a feature (`about_label` false) or about its chosen label, on the test documents only.

    A scorer that is not `by_default` needs more than the store and runs only if it is named.
    """

    name: ClassVar[str]
    about_label: ClassVar[bool] = True
    by_default: ClassVar[bool] = True

    @abstractmethod
    def score(self, case: ScoringCase) -> list[Figure]:
        """The figures; an empty list if this scorer has nothing to say."""
