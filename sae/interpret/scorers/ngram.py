"""How well hashed tokens and pairs of tokens tell a feature's windows from others: what needs no understanding."""

from __future__ import annotations

from typing import final

import numpy as np
from numba import njit

from sae.interpret.events import Event
from sae.interpret.intervals import auc
from sae.interpret.scorer import Figure, Scorer, ScoringCase

BUCKETS = 1 << 24  # with 4,096, half of the n-grams of 50 windows share a bucket, and a planted word had an AUC of 0.74
UPDATES = 80
PENALTY = 0.3
MOST_NEGATIVE = 60


@njit(cache=True)
def _hashed(ids, length):  # pragma: no cover (compiled)
    """Buckets [windows, 2 * width] of single tokens and pairs, -1 for none; each bucket once per window."""
    n, width = ids.shape
    buckets = np.full((n, 2 * width), -1, np.int64)

    for w in range(n):
        m = 0
        for p in range(length[w]):
            for pair in range(2):
                if pair == 1 and p + 1 >= length[w]:
                    continue
                key = np.uint64(ids[w, p] + 1) * np.uint64(0x9E3779B97F4A7C15)
                if pair == 1:
                    key = (key ^ np.uint64(ids[w, p + 1] + 7)) * np.uint64(0xBF58476D1CE4E5B9)
                bucket = np.int64((key >> np.uint64(40)) % np.uint64(BUCKETS))
                known = False
                for q in range(m):
                    known |= buckets[w, q] == bucket
                if not known:
                    buckets[w, m] = bucket
                    m += 1

    return buckets


@njit(cache=True)
def _fit(places, y, size, updates, penalty):  # pragma: no cover (compiled)
    """Weights [size + 1] of logistic regression, classes weighted equally, by gradient steps with momentum."""
    weights, speed = np.zeros(size + 1), np.zeros(size + 1)
    n_pos = y.sum()

    for _ in range(updates):
        gradient = penalty * weights
        for w in range(len(y)):
            z = weights[size]
            for b in places[w]:
                if b >= 0:
                    z += weights[b]
            p = 1 / (1 + np.exp(-z))
            error = (p - y[w]) / (n_pos if y[w] else len(y) - n_pos) / 2
            gradient[size] += error
            for b in places[w]:
                if b >= 0:
                    gradient[b] += error
        speed = 0.9 * speed - 0.2 * gradient
        weights += speed

    return weights


def _buckets(events: list[Event]) -> np.ndarray:
    length = np.array([len(e.ids) for e in events], np.int64)
    ids = np.zeros((len(events), int(length.max())), np.int64)
    for row, event in zip(ids, events, strict=True):
        row[: len(event.ids)] = event.ids
    return _hashed(ids, length)


def _places(buckets: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The index of each bucket among the known ones; -1 for buckets that no explain window has."""
    places = np.searchsorted(known, buckets).clip(max=len(known) - 1)
    return np.where((known[places] == buckets) & (buckets >= 0), places, -1)


@final
class Ngram(Scorer):
    """AUC of logistic regression on hashed tokens and pairs, fitted on explain windows, against hard and random ones.

    Negatives are half windows of the nearest features in which this one is silent, half random ones; chance is 0.5.
    """

    name = "ngram"
    about_label = False

    def score(self, case: ScoringCase) -> list[Figure]:
        """auc; nothing if a part has fewer than two windows of a class."""
        events = case.evidence.events
        positive = events.activating(case.feature)
        hard = events.hard_negatives(case.feature)
        random = case.drawn(events.random_silent(case.feature), MOST_NEGATIVE - len(hard))
        parts = [(case.part(positive, t), case.part(hard + random, t)) for t in (False, True)]
        if any(len(side) < 2 for part in parts for side in part):
            return []

        explain = _buckets(parts[0][0] + parts[0][1])
        y = np.zeros(len(explain))
        y[: len(parts[0][0])] = 1
        known = np.unique(explain)
        weights = _fit(_places(explain, known), y, len(known), UPDATES, PENALTY)
        weights[len(known)] = 0  # shared by all, and the weight of places that hold nothing
        logits = [weights[_places(_buckets(side), known)].sum(1) for side in parts[1]]

        return [Figure("auc", auc(*logits), 0.5, len(logits[0]), n_neg=len(logits[1]))]
