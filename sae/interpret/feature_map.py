"""The map of features: a place in the plane for each, near those that it is like."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numba import njit
from scipy.sparse import csr_matrix

from feature_store.indexing.contexts import mixed_number
from feature_store.records import Concept
from feature_store.store import Store
from sae.interpret.concepts import affinity

A, B = 1.577, 0.895  # of the curve 1 / (1 + A d^2B): a least distance of 0.1
EPOCHS = 200
REPELLED = 5  # features that every attraction pushes away
LARGEST_STEP = 4.0
GROUP_SPREAD = 0.5  # of members around their group, before they move


class Places(NamedTuple):
    """Coordinates between 0 and 1 of some features."""

    feature: Int[np.ndarray, " features"]
    x: Float[np.ndarray, " features"]
    y: Float[np.ndarray, " features"]


def places_of(store: Store, alive: list[int], concepts: list[Concept], seed: int) -> Places:
    """Places of the live features: those of high affinity (`concepts.affinity`) near each other.

    Groups are placed first, then their members begin at the place of their group; so what is far on the map is told by
    the groups, what is near by the features. Features without any affinity stay where they began.
    """
    if not alive:
        return Places(np.empty(0, np.uint32), *np.empty((2, 0), np.float32))
    features = np.array(alive)
    edges = csr_matrix(affinity(store, alive)[features, :][:, features])
    groups = _groups(features, concepts)
    rng = np.random.default_rng(seed)

    n_groups = int(groups.max()) + 1
    between = _contracted(edges, groups, n_groups)
    centres = layout(between, rng.normal(0, np.sqrt(n_groups), (n_groups, 2)), seed)
    start = centres[groups] + rng.normal(0, GROUP_SPREAD, (len(features), 2))
    places = layout(edges, start, seed)

    low, high = places.min(0), places.max(0)
    x, y = ((places - low) / np.maximum(high - low, 1e-9)).astype(np.float32).T
    return Places(features.astype(np.uint32), x, y)


def _groups(features: Int[np.ndarray, " features"], concepts: list[Concept]) -> Int[np.ndarray, " features"]:
    """The group of every feature: its narrowest concept, else one of its own."""
    group = {feature: concept.concept for concept in concepts for feature in concept.features}  # parts follow the whole
    free = iter(range(len(concepts), len(concepts) + len(features)))
    numbers = [group[f] if f in group else next(free) for f in features.tolist()]
    return np.unique(numbers, return_inverse=True)[1]


def _contracted(edges: csr_matrix, groups: Int[np.ndarray, " features"], n: int) -> csr_matrix:
    """Affinity between the n groups: the sum over their members."""
    rows, columns = np.repeat(groups, np.diff(edges.indptr)), groups[edges.indices]
    between = rows != columns
    return csr_matrix((edges.data[between], (rows[between], columns[between])), shape=(n, n))


def layout(edges: csr_matrix, start: Float[np.ndarray, "n 2"], seed: int) -> Float[np.ndarray, "n 2"]:
    """Places after stochastic descent on UMAP's cross entropy between affinity and nearness 1 / (1 + a d^2b).

    Each row's weights are shared out by its largest; an edge of weight w is drawn in w of the epochs, attracts its two
    ends, and pushes `REPELLED` others away from the first. One thread and a generator of its own: the same bits for the
    same seed.

    Source: McInnes, Healy and Melville 2018, arXiv 1802.03426, section 3.2 and appendix C. Differs from it: the affinity
    is given, not made from distances; the start is given.
    """
    rows = np.repeat(np.arange(len(start)), np.diff(edges.indptr))
    largest = np.zeros(len(start))
    np.maximum.at(largest, rows, edges.data)
    places = np.array(start, np.float64)
    _descend(places, rows, edges.indices.astype(np.int64), edges.data / largest[rows], EPOCHS, seed)
    return places


@njit(cache=True)
def _descend(places, rows, columns, weights, epochs, seed):  # pragma: no cover (compiled)
    """Moves `places` in place."""
    state = mixed_number(np.uint64(seed))
    n = np.uint64(len(places))
    due = 1.0 / weights
    for epoch in range(epochs):
        rate = 1.0 - epoch / epochs
        for e in range(len(rows)):
            if due[e] > epoch + 1:
                continue
            due[e] += 1.0 / weights[e]
            i, j = rows[e], columns[e]
            dx, dy = places[i, 0] - places[j, 0], places[i, 1] - places[j, 1]
            square = dx * dx + dy * dy
            if square > 0:
                pull = -2.0 * A * B * square ** (B - 1.0) / (A * square**B + 1.0)
                sx, sy = _bounded(pull * dx) * rate, _bounded(pull * dy) * rate
                places[i, 0] += sx
                places[i, 1] += sy
                places[j, 0] -= sx
                places[j, 1] -= sy
            for _ in range(REPELLED):
                state += np.uint64(1)
                k = np.int64(mixed_number(state) % n)
                if k == i:
                    continue
                dx, dy = places[i, 0] - places[k, 0], places[i, 1] - places[k, 1]
                square = dx * dx + dy * dy
                push = 2.0 * B / ((0.001 + square) * (A * square**B + 1.0))
                places[i, 0] += _bounded(push * dx) * rate
                places[i, 1] += _bounded(push * dy) * rate


@njit(cache=True)
def _bounded(step):  # pragma: no cover (compiled)
    return min(max(step, -LARGEST_STEP), LARGEST_STEP)
