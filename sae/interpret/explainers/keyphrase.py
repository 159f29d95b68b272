"""Explains a feature by words that occur in its contexts more often than in random text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from functools import lru_cache
from math import log, sqrt
from typing import NamedTuple, final

from sae.interpret.events import Event
from sae.interpret.evidence import Counts, Evidence
from sae.interpret.explainer import Explainer, Proposal, best_of, quoted

WORD = re.compile(r"[^\W\d_]{3,}")
CANDIDATES = 8
PRIOR_WINDOWS = 10.0


@lru_cache(maxsize=1 << 17)
def words(text: str) -> frozenset[str]:
    """The different words of a window in lower case, words cut at its edge included."""
    return frozenset(WORD.findall(text.lower()))


def log_odds(positive: Counter[str], n_positive: int, background: Counter[str], n_background: int) -> dict[str, float]:
    """z-score of each word's log-odds of being in a positive window against a background window.

    Log-odds with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008, equations 16 and 22); the prior is
    the rate in all windows together, worth `PRIOR_WINDOWS` windows.
    """
    scores = {}
    for word, count in positive.items():
        other = background[word]
        prior = PRIOR_WINDOWS * (count + other + 0.5) / (n_positive + n_background + 1)
        rest = PRIOR_WINDOWS - prior
        a = log((count + prior) / (n_positive - count + rest))
        b = log((other + prior) / (n_background - other + rest))
        scores[word] = (a - b) / sqrt(1 / (count + prior) + 1 / (other + prior))

    return scores


@final
class Keyphrase(Explainer):
    """Rule: the feature fires strongly exactly in windows that hold one of these words."""

    name = "keyphrase"
    order = 8
    margin = 0.05

    def explain(self, evidence: Evidence, feature: int) -> Proposal | None:
        """Up to three words, tested on strong windows against random silent windows of the test documents."""
        explain, test = ([self._words(evidence, e) for e in part] for part in evidence.windows(feature))
        silent = [part.without(evidence.events.random_firing.get(feature, set())) for part in _background(evidence)]
        counted = Counter(word for window in explain for word in window)
        background = Counter({word: silent[0].holding({word}) for word in counted})
        ranked = log_odds(counted, len(explain), background, silent[0].n)
        candidates = sorted(ranked, key=lambda w: (-ranked[w], w))[:CANDIDATES]
        part = evidence.strong(feature)[0]
        prevalence = part.n_strong / part.n_tokens

        def counts(chosen: Iterable[str], positive: list[frozenset[str]], negative: _Silent) -> Counts:
            hits = sum(not w.isdisjoint(chosen) for w in positive)
            return Counts(hits, len(positive), negative.holding(chosen), negative.n, prevalence=prevalence)

        chosen = best_of(candidates, lambda words: counts(words, explain, silent[0]))
        if not chosen:
            return None

        part_counts = counts(chosen, explain, silent[0]), counts(chosen, test, silent[1])

        return Proposal("about " + quoted(chosen), frozenset(chosen), *part_counts)

    @staticmethod
    def _words(evidence: Evidence, event: Event) -> frozenset[str]:
        return words(evidence.events.text(event))

    def items(self, evidence: Evidence, event: Event) -> frozenset[Hashable]:
        """The window's words."""
        return self._words(evidence, event)


class _Silent(NamedTuple):
    """One part's random windows in which a feature is silent: which of them contain a word, and how many there are."""

    places: dict[str, set[int]]
    left_out: set[int]
    n: int

    def holding(self, words: Iterable[str]) -> int:
        """Windows that hold one of the words."""
        windows: set[int] = set()
        for word in words:
            windows |= self.places.get(word, set())
        return len(windows - self.left_out)


class _Part(NamedTuple):
    """The random windows of one part, by word."""

    places: dict[str, set[int]]
    numbers: set[int]

    def without(self, firing: set[int]) -> _Silent:
        """The same without some windows."""
        return _Silent(self.places, firing, len(self.numbers - firing))


@lru_cache(maxsize=1)
def _background(evidence: Evidence) -> tuple[_Part, _Part]:
    parts = _Part({}, set()), _Part({}, set())
    for number, event in enumerate(evidence.events.random):
        part = parts[event.is_test]
        part.numbers.add(number)
        for word in words(evidence.events.text(event)):
            part.places.setdefault(word, set()).add(number)
    return parts
