"""How much a feature's windows resemble each other in their words, more than they resemble random windows."""

from __future__ import annotations

from functools import lru_cache
from math import log, nan
from typing import final

import numpy as np

from sae.interpret.evidence import Evidence
from sae.interpret.explainers.keyphrase import words
from sae.interpret.intervals import Interval, jackknife
from sae.interpret.scorer import Figure, Scorer, ScoringCase

MOST = 16


@final
class Coherence(Scorer):
    """Mean cosine of a test window with the feature's others, minus that with random windows.

    Windows are sets of words weighted by how rare these are in random windows (log of n / n_with). Chance is 0.
    """

    name = "coherence"
    about_label = False

    def score(self, case: ScoringCase) -> list[Figure]:
        """cosine_gain; nothing with fewer than two test windows."""
        events = case.evidence.events
        positive = case.drawn(case.part(events.activating(case.feature), True), MOST)
        random = case.drawn(case.part(events.random_silent(case.feature), True), MOST)
        if len(positive) < 2 or not random:
            return []

        weight = _rarity(case.evidence)
        rarest = max(weight.values(), default=1.0)
        # In alphabetical order: a set has another one in every process, and sums of other bits.
        vectors = [{w: weight.get(w, rarest) for w in sorted(words(events.text(e)))} for e in positive + random]
        matrix = _cosines(vectors)
        m = len(positive)
        within, across = matrix[:m, :m].sum(1) - 1, matrix[:m, m:].mean(1)
        value = within.sum() / (m * (m - 1)) - across.mean()
        if m == 2:
            return [Figure("cosine_gain", Interval(value, nan, nan), 0.0, m, n_neg=len(random))]

        left_out = (within.sum() - 2 * within) / ((m - 1) * (m - 2)) - (across.sum() - across) / (m - 1)

        return [Figure("cosine_gain", jackknife(value, left_out), 0.0, m, n_neg=len(random))]


def _cosines(vectors: list[dict[str, float]]) -> np.ndarray:
    places: dict[str, int] = {}
    for vector in vectors:
        for word in vector:
            places.setdefault(word, len(places))

    table = np.zeros((len(vectors), max(len(places), 1)))
    for row, vector in zip(table, vectors, strict=True):
        row[[places[w] for w in vector]] = list(vector.values())

    norms = np.sqrt((table * table).sum(1, keepdims=True))
    table /= np.where(norms > 0, norms, 1)
    cosines = table @ table.T
    np.fill_diagonal(cosines, 1.0)

    return cosines


@lru_cache(maxsize=1)
def _rarity(evidence: Evidence) -> dict[str, float]:
    counted: dict[str, int] = {}
    for event in evidence.events.random:
        for word in words(evidence.events.text(event)):
            counted[word] = counted.get(word, 0) + 1
    n = len(evidence.events.random)
    return {word: log((n + 1) / count) for word, count in counted.items()}
