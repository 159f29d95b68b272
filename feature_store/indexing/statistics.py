"""Counts behind model-free labels and scores: positions, formats, word pairs, token lookup, co-activation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt
from numba import njit

from feature_store.indexing.codes import Codes
from feature_store.indexing.formats import FORMATS, N_POSITIONS
from feature_store.indexing.words import StreamWords

GROUPS = 10
BIGRAMS_PER_FEATURE = 16
COACTIVE_FIRINGS = 1000


class Stream(NamedTuple):
    """A flat stream of tokens, [tokens] each; `size` is that of the vocabulary.

    ids; normal: the first id of the same text; owner: the document; is_test: whether the document tests explanations;
    group: the group of documents that a jackknife leaves out; position and format: bins; starts: whether a document or
    a context begins there; words: the words around every token.
    """

    ids: Integer[np.ndarray, " tokens"]
    normal: Int[np.ndarray, " tokens"]
    owner: Integer[np.ndarray, " tokens"]
    is_test: Bool[np.ndarray, " tokens"]
    group: UInt[np.ndarray, " tokens"]
    position: Int[np.ndarray, " tokens"]
    format: Int[np.ndarray, " tokens"]
    starts: Bool[np.ndarray, " tokens"]
    words: StreamWords
    size: int

    def in_test_part(self) -> Bool[np.ndarray, " documents"]:
        """Which documents are for testing."""
        is_test = np.zeros(int(self.owner[-1]) + 1, bool)
        is_test[self.owner] = self.is_test
        return is_test


class Totals(NamedTuple):
    """Counts over a whole stream.

    n_explain [vocabulary]: occurrences in explain documents; n_test [groups, vocabulary]: in each group of test
    documents; pairs: all pairs of neighbours in explain and in test documents, sorted.
    """

    n_explain: Int[np.ndarray, " vocabulary"]
    n_test: Int[np.ndarray, "groups vocabulary"]
    pairs: tuple[Int[np.ndarray, " explain_pairs"], Int[np.ndarray, " test_pairs"]]


def totals_of(stream: Stream) -> Totals:
    """The counts that the statistics of any feature are compared with."""
    n_explain = np.bincount(stream.ids[~stream.is_test], minlength=stream.size)
    groups = [stream.is_test & (stream.group == g) for g in range(GROUPS)]
    n_test = np.stack([np.bincount(stream.ids[g], minlength=stream.size) for g in groups])
    sorted_pairs = []

    for part in (False, True):
        inside = np.flatnonzero(~stream.starts & (stream.is_test == part))
        pairs = stream.normal[inside - 1].astype(np.int64) * stream.size + stream.normal[inside]
        pairs.sort()
        sorted_pairs.append(pairs)

    return Totals(n_explain, n_test, (sorted_pairs[0], sorted_pairs[1]))


class Statistics(NamedTuple):
    """The first axis is the feature, except in `bigrams`.

    position [d_sae, 2, positions] and format [d_sae, 2, formats] count strong firings in (explain, test) documents.
    bigrams: rows (feature, token before, token, strong firings in explain, in test, occurrences in explain, in test);
    tokens of one text (stripped, lower-cased) count as the first of them.
    lookup [d_sae, groups, 5]: over the test tokens of a group of documents the sums of a, a^2, p, p^2 and a p, for
    activation a and p its mean on the token in explain documents.
    coactive [d_sae, n]: features that fire with it, and n_both / sqrt(n_one n_other).
    """

    position: UInt[np.ndarray, "d_sae 2 positions"]
    format: UInt[np.ndarray, "d_sae 2 formats"]
    bigrams: Int[np.ndarray, "rows 7"]
    lookup: Float[np.ndarray, "d_sae groups 5"]
    coactive: UInt[np.ndarray, "d_sae n"]
    coactive_scores: Float[np.ndarray, "d_sae n"]


@njit(nogil=True, cache=True)
def _bins(offsets, firings, is_test, bins, size):  # pragma: no cover (compiled)
    counts = np.zeros((offsets.size - 1, 2, size), np.uint32)
    for f in range(offsets.size - 1):
        for p in range(offsets[f], offsets[f + 1]):
            t = firings[p]
            counts[f, int(is_test[t]), bins[t]] += 1
    return counts


@njit(nogil=True, cache=True)
def _bigrams(offsets, firings, ids, is_test, starts, size, keep):  # pragma: no cover (compiled)
    d_sae = offsets.size - 1
    rows = np.empty((d_sae * keep, 4), np.int64)  # feature, pair, explain, test
    n_rows = 0

    for f in range(d_sae):
        places = firings[offsets[f] : offsets[f + 1]]
        keys = np.empty(places.size, np.int64)
        n = 0
        for t in places:
            if not starts[t]:
                keys[n] = (np.int64(ids[t - 1]) * size + np.int64(ids[t])) * 2 + np.int64(is_test[t])
                n += 1
        keys = np.sort(keys[:n])
        pairs, explain, test = np.empty(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)
        m = 0
        for key in keys:
            if m == 0 or pairs[m - 1] != key // 2:
                pairs[m] = key // 2
                m += 1
            if key % 2:
                test[m - 1] += 1
            else:
                explain[m - 1] += 1
        order = np.argsort(-explain[:m], kind="mergesort")
        for r in order[:keep]:
            if explain[r] > 0:
                rows[n_rows] = f, pairs[r], explain[r], test[r]
                n_rows += 1

    return rows[:n_rows].copy()


@njit(nogil=True, cache=True)
def _lookup(offsets, firings, acts, ids, is_test, group, n_explain, n_test):  # pragma: no cover (compiled)
    """Sums for the correlation of activation and token mean; n_test is [groups, vocabulary]."""
    d_sae, size = offsets.size - 1, n_explain.size
    sums = np.zeros((d_sae, n_test.shape[0], 5), np.float64)
    total = np.zeros(size, np.float64)
    touched = np.empty(size, np.int64)

    for f in range(d_sae):
        n = 0
        for p in range(offsets[f], offsets[f + 1]):
            t = firings[p]
            if not is_test[t]:
                if total[ids[t]] == 0:
                    touched[n] = ids[t]
                    n += 1
                total[ids[t]] += acts[p]
        for p in range(offsets[f], offsets[f + 1]):
            t = firings[p]
            if is_test[t]:
                a = acts[p]
                g = group[t]
                mean = total[ids[t]] / max(n_explain[ids[t]], 1)
                sums[f, g, 0] += a
                sums[f, g, 1] += a * a
                sums[f, g, 4] += a * mean
        for r in range(n):
            token = touched[r]
            mean = total[token] / max(n_explain[token], 1)
            for g in range(n_test.shape[0]):
                sums[f, g, 2] += mean * n_test[g, token]
                sums[f, g, 3] += mean * mean * n_test[g, token]
            total[token] = 0

    return sums


@njit(nogil=True, cache=True)
def _coactive(first, offsets, firings, starts, indices, n_fired, keep, most):  # pragma: no cover (compiled)
    """The features that fire on most of a feature's (at most `most`, evenly spaced) firings, by cosine of firing."""
    n = offsets.size - 1
    partners, scores = np.zeros((n, keep), np.uint32), np.zeros((n, keep), np.float32)
    both, touched = np.zeros(n_fired.size, np.int64), np.empty(n_fired.size, np.int64)

    for i in range(n):
        f = first + i
        partners[i] = f  # where fewer fire with it
        n_all = offsets[i + 1] - offsets[i]
        n_seen = min(n_all, most)
        n_touched = 0
        for r in range(n_seen):
            t = firings[offsets[i] + r * n_all // n_seen]
            for j in range(starts[t], starts[t + 1]):
                other = indices[j]
                if other != f:
                    if both[other] == 0:
                        touched[n_touched] = other
                        n_touched += 1
                    both[other] += 1
        seen = np.sort(touched[:n_touched])
        value = both[seen] / max(n_seen, 1) * np.sqrt(n_fired[f] / np.maximum(n_fired[seen], 1))
        order = np.argsort(-value, kind="mergesort")[:keep]
        for r in range(order.size):
            partners[i, r], scores[i, r] = seen[order[r]], min(value[order[r]], 1.0)
        for other in seen:
            both[other] = 0

    return partners, scores


def gather(
    stream: Stream,
    totals: Totals,
    strong: tuple[Int[np.ndarray, " offsets"], UInt[np.ndarray, " strong"]],
    fired: tuple[Int[np.ndarray, " offsets"], UInt[np.ndarray, " fired"], Float[np.ndarray, " fired"]],
    *,
    codes: Codes,
    first: int,
    n_fired: Int[np.ndarray, " d_sae"],
    n_coactive: int,
) -> Statistics:
    """All counts of consecutive features, starting with the feature `first`.

    `strong` is (offsets, places) of their strong firings by feature, `fired` (offsets, places, activations) of all
    their firings, `n_fired` [d_sae] how often every feature fires.
    """
    rows = _bigrams(*strong, stream.normal, stream.is_test, stream.starts, stream.size, BIGRAMS_PER_FEATURE)
    occurrences = [_occurrences(pairs, rows[:, 1]) for pairs in totals.pairs]
    bigrams = np.column_stack(
        [rows[:, 0] + first, rows[:, 1] // stream.size, rows[:, 1] % stream.size, rows[:, 2:], *occurrences]
    )
    offsets, places, acts = fired
    n_coactive = min(n_coactive, len(n_fired) - 1)

    return Statistics(
        _bins(*strong, stream.is_test, stream.position, N_POSITIONS),
        _bins(*strong, stream.is_test, stream.format, len(FORMATS)),
        bigrams,
        _lookup(offsets, places, acts, stream.ids, stream.is_test, stream.group, totals.n_explain, totals.n_test),
        *_coactive(first, offsets, places, codes.starts, codes.indices, n_fired, n_coactive, COACTIVE_FIRINGS),
    )


def _occurrences(sorted_keys: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """How often each of the keys occurs among the sorted ones."""
    return np.searchsorted(sorted_keys, keys, side="right") - np.searchsorted(sorted_keys, keys, side="left")
