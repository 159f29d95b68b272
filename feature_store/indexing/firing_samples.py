"""What is drawn from a feature's firings: contexts, the share of weaker firings, the tokens with most activation."""

# pyright: reportCallIssue=false

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt
from numba import njit

from feature_store.indexing.contexts import Collected, mixed_number
from feature_store.indexing.statistics import Stream

MASS_TOKENS = 5
N_UNIFORM = 20  # contexts drawn per feature for scores that must not be of the strongest contexts alone
HIGH_LEVEL = 5  # of ten global levels of activation: a context counts as one in which the feature fires from here on


class FiringSamples(NamedTuple):
    """The first axis is the feature.

    uniform: tokens at the peaks of contexts of test documents, drawn uniformly from those in which the peak has a high
    global level, -1 where there are fewer; available: how many contexts there are to draw from.
    weaker: share of the firings below each of `Collected.peaks` and then of the uniform peaks.
    mass_token, mass_share: the tokens that hold most of the activation in explain documents, with their shares of it.
    """

    uniform: Int[np.ndarray, "features n"]
    available: Int[np.ndarray, " features"]
    weaker: Float[np.ndarray, "features peaks"]
    mass_token: Int[np.ndarray, "features tokens"]
    mass_share: Float[np.ndarray, "features tokens"]


@njit(nogil=True, cache=True)
def _weaker(offsets, values, peaks):  # pragma: no cover (compiled)
    """Share of each feature's firings that are below each of its peaks [features, peaks]."""
    shares = np.zeros(peaks.shape, np.float32)
    for f in range(len(peaks)):
        ordered = np.sort(values[offsets[f] : offsets[f + 1]])
        if ordered.size:
            shares[f] = np.searchsorted(ordered, peaks[f]) / ordered.size
    return shares


@njit(nogil=True, cache=True)
def _uniform(offsets, tokens, values, is_test, ctx_len, least, first, keep):  # pragma: no cover (compiled)
    """(token of the peak [features, keep] or -1, contexts to draw from [features]); the smallest hashes are kept."""
    n = offsets.size - 1
    places, available = np.full((n, keep), -1, np.int64), np.zeros(n, np.int64)
    keys = np.empty(keep, np.uint64)

    for f in range(n):
        keys[:] = np.uint64(0xFFFFFFFFFFFFFFFF)
        p = offsets[f]
        while p < offsets[f + 1]:
            context, best = tokens[p] // ctx_len, p
            while p < offsets[f + 1] and tokens[p] // ctx_len == context:
                if values[p] > values[best]:
                    best = p
                p += 1
            if values[best] <= least or not is_test[tokens[best]]:
                continue
            available[f] += 1
            key = mixed_number(mixed_number(np.uint64(first + f) + np.uint64(1)) + np.uint64(context))
            slot = keep - 1
            if key >= keys[slot]:
                continue
            while slot > 0 and keys[slot - 1] > key:
                keys[slot], places[f, slot] = keys[slot - 1], places[f, slot - 1]
                slot -= 1
            keys[slot], places[f, slot] = key, tokens[best]

    return places, available


@njit(nogil=True, cache=True)
def _mass(offsets, tokens, values, normal, is_test, size, keep):  # pragma: no cover (compiled)
    """(tokens, shares) [features, keep]: where a feature's activation in explain documents is, the largest share first."""
    n = offsets.size - 1
    best, shares = np.zeros((n, keep), np.int64), np.zeros((n, keep), np.float32)
    total, touched = np.zeros(size, np.float64), np.empty(size, np.int64)

    for f in range(n):
        n_touched, whole = 0, 0.0
        for p in range(offsets[f], offsets[f + 1]):
            if is_test[tokens[p]]:
                continue
            token = normal[tokens[p]]
            if total[token] == 0:
                touched[n_touched] = token
                n_touched += 1
            total[token] += values[p]
            whole += values[p]
        seen = np.sort(touched[:n_touched])
        order = np.argsort(-total[seen], kind="mergesort")[:keep]
        for r in range(order.size):
            best[f, r], shares[f, r] = seen[order[r]], total[seen[order[r]]] / whole
        total[seen] = 0

    return best, shares


def sample(
    stream: Stream,
    fired: tuple[Int[np.ndarray, " offsets"], UInt[np.ndarray, " fired"], Float[np.ndarray, " fired"]],
    collected: Collected,
    features: slice,
    *,
    ctx_len: int,
) -> FiringSamples:
    """Samples of consecutive features; `fired` is (offsets, places, activations) of all their firings by feature."""
    least = collected.level_edges()[HIGH_LEVEL - 2]
    uniform, available = _uniform(*fired, stream.is_test, ctx_len, least, features.start, N_UNIFORM)
    offsets, places, values = fired
    acts = np.zeros(uniform.shape, np.float32)
    for number, chosen in enumerate(uniform):
        part = slice(offsets[number], offsets[number + 1])
        drawn = chosen[chosen >= 0]
        acts[number, : len(drawn)] = values[part][np.searchsorted(places[part], drawn)]

    peaks = np.concatenate([collected.peaks(features), acts], axis=1)
    mass = _mass(*fired, stream.normal, stream.is_test, stream.size, MASS_TOKENS)

    return FiringSamples(uniform, available, _weaker(offsets, values, peaks), *mass)
