"""Explains a feature by words that stand near its firings more often than elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from functools import lru_cache
from math import log, sqrt
from typing import final

import numpy as np

from feature_store.indexing.words import WORD
from sae.interpret.events import Event
from sae.interpret.evidence import Counts, Evidence
from sae.interpret.explainer import Explainer, Proposal, best_of, quoted

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
    """Rule: the feature fires strongly exactly on tokens whose window holds one of these words."""

    name = "keyphrase"
    order = 8
    margin = 0.05

    def explain(self, evidence: Evidence, feature: int) -> Proposal | None:
        """Up to three words, tested on every token of the test documents."""
        around = evidence.words_around.get(feature)
        if around is None:
            return None
        parts = evidence.strong(feature)
        subsets = np.arange(around.hits.shape[1])

        def counts(chosen: Iterable[str], part: int) -> Counts:
            held = sum(1 << around.words.index(word) for word in chosen)
            matches = (subsets & held) > 0
            return parts[part].counts(int(around.hits[part, matches].sum()), int(around.covered[part, matches].sum()))

        chosen = best_of(around.words, lambda texts: counts(texts, 0))
        if not chosen:
            return None

        return Proposal("near " + quoted(chosen), frozenset(chosen), counts(chosen, 0), counts(chosen, 1))

    def items(self, evidence: Evidence, event: Event) -> frozenset[Hashable]:
        """The window's words."""
        return words(evidence.events.text(event))
