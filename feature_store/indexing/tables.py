"""Counts over sparse codes: the tokens of every feature, and all else that a generation says of it."""

# pyright: reportCallIssue=false

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Integer, UInt
from numba import get_num_threads, njit

from feature_store.indexing.codes import Codes
from feature_store.indexing.contexts import Collected
from feature_store.indexing.firing_samples import FiringSamples, sample
from feature_store.indexing.formats import (
    breaks_line,
    classes_of,
    first_of_same_text,
    formats_of,
    places_of,
    position_bin,
)
from feature_store.indexing.statistics import GROUPS, Statistics, Stream, gather, totals_of
from feature_store.indexing.words import WordCounts, count_words, stream_words

TOKENS_PER_FEATURE = 64
STRONG = 1 / 3
BYTES_PER_FIRING = 24  # place and activation of a firing, again if it is strong, and what is sorted of it


def in_test_part(keys: Integer[np.ndarray, " documents"]) -> Bool[np.ndarray, " documents"]:
    """Which documents test explanations: half of them, by a hash of the key that near-duplicates share."""
    return (mixed(keys) & np.uint64(1)).astype(bool)


def mixed(numbers: Integer[np.ndarray, "*shape"]) -> UInt[np.ndarray, "*shape"]:
    """A 64-bit hash of every number (the finaliser of splitmix64)."""
    x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(nogil=True, cache=True)
def _firings(starts, indices, acts, first, n_fired):  # pragma: no cover (compiled)
    """(offsets, flat token places, activations) of the firings of the features from `first` on, by feature, in order."""
    n = n_fired.size
    offsets = np.zeros(n + 1, np.int64)
    offsets[1:] = np.cumsum(n_fired)
    place = offsets[:-1].copy()
    tokens, values = np.empty(offsets[-1], np.uint32), np.empty(offsets[-1], np.float32)

    for t in range(starts.size - 1):
        for j in range(starts[t], starts[t + 1]):
            f = np.int64(indices[j]) - first
            if 0 <= f < n:
                tokens[place[f]], values[place[f]] = t, acts[j]
                place[f] += 1

    return offsets, tokens, values


@njit(nogil=True, cache=True)
def _strong(offsets, tokens, values, least):  # pragma: no cover (compiled)
    """(offsets, flat token places) of the firings of at least `least` [features]."""
    strong, n = np.empty(tokens.size, np.uint32), 0
    starts = np.zeros(offsets.size, np.int64)
    for f in range(offsets.size - 1):
        for p in range(offsets[f], offsets[f + 1]):
            if values[p] >= least[f]:
                strong[n] = tokens[p]
                n += 1
        starts[f + 1] = n
    return starts, strong[:n].copy()


@njit(nogil=True, cache=True)
def _token_counts(offsets, firings, ids, is_test, ctx_len, shift, size, wanted, keep):  # pragma: no cover
    """Per feature the tokens (`shift` places after each firing) seen most often in explain documents.

    `wanted` [d_sae, n] are tokens that are reported whatever their rank. Returns rows (feature, token, explain, test).
    """
    explain, test = np.zeros(size, np.int64), np.zeros(size, np.int64)
    touched = np.empty(size, np.int64)
    d_sae = offsets.size - 1
    rows = np.empty((d_sae * (keep + wanted.shape[1]), 4), np.int64)
    n_rows = 0

    for f in range(d_sae):
        n_touched = 0
        for p in range(offsets[f], offsets[f + 1]):
            t = np.int64(firings[p])
            if not 0 <= t % ctx_len + shift < ctx_len:
                continue
            token = ids[t + shift]
            if explain[token] == 0 and test[token] == 0:
                touched[n_touched] = token
                n_touched += 1
            if is_test[t]:
                test[token] += 1
            else:
                explain[token] += 1
        seen = touched[:n_touched]
        order = np.argsort(-explain[seen] * size + seen)
        for r in range(n_touched):
            token = seen[order[r]]
            if r < keep or (wanted.shape[1] and np.any(wanted[f] == token)):
                rows[n_rows] = f, token, explain[token], test[token]
                n_rows += 1
        for r in range(n_touched):
            explain[seen[r]] = test[seen[r]] = 0

    return rows[:n_rows].copy()


@njit(nogil=True, cache=True)
def _test_documents_of(offsets, firings, owner, is_test):  # pragma: no cover (compiled)
    """Test documents that hold a strong firing, by feature.

    They are the independent trials of an interval: documents with any firing are about twice as many, and intervals that
    counted those covered 72 % instead of 95 %.
    """
    counts = np.zeros(offsets.size - 1, np.int64)
    for f in range(offsets.size - 1):
        last = np.int64(-1)
        for p in range(offsets[f], offsets[f + 1]):
            document = np.int64(owner[firings[p]])
            if document != last and is_test[document]:
                counts[f] += 1
            last = document
    return counts


class Tables(NamedTuple):
    """Counts of one pass over the codes."""

    n_strong: Int[np.ndarray, " features"]
    n_strong_test: Int[np.ndarray, " features"]
    n_documents_strong_test: Int[np.ndarray, " features"]
    samples: FiringSamples
    current: Int[np.ndarray, "rows 4"]
    following: Int[np.ndarray, "rows 4"]
    preceding: Int[np.ndarray, "rows 4"]
    words: WordCounts
    statistics: Statistics


def stream_of(codes: Codes, vocabulary: list[bytes], is_test: Bool[np.ndarray, " documents"]) -> Stream:
    """The tokens of the codes with their documents, positions and formats; `is_test` [documents]."""
    ids = np.ascontiguousarray(codes.ids).reshape(-1)
    owner = np.ascontiguousarray(codes.documents).reshape(-1)
    places = places_of(codes.documents)
    starts = places == 0
    formats = formats_of(ids, places, classes_of(vocabulary), breaks_line(vocabulary))
    group = ((mixed(np.arange(len(is_test))) >> np.uint64(8)) % np.uint64(GROUPS)).astype(np.uint8)
    normal = first_of_same_text(vocabulary)[ids]
    return Stream(
        ids,
        normal,
        owner,
        is_test[owner],
        group=group[owner],
        position=position_bin(places),
        format=formats,
        starts=starts,
        words=stream_words(ids, starts, is_test[owner], vocabulary),
        size=len(vocabulary),
    )


def ranges(n_fired: Int[np.ndarray, " features"], most: int) -> list[slice]:
    """Consecutive features that fire at most `most` times together, at least one at a time."""
    ends, slices, start = np.cumsum(n_fired), [], 0
    while start < len(n_fired):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        slices.append(slice(start, min(stop, len(n_fired))))
        start = stop
    return slices


def count(
    codes: Codes,
    stream: Stream,
    collected: Collected,
    *,
    promoted: Integer[np.ndarray, "d_sae n"],
    n_coactive: int,
    memory_bytes: int,
    features: slice | None = None,
) -> Tables:
    """Token tables and statistics of the firings of `features` (default: all), on all cores.

    A firing is strong if it reaches `STRONG` times the feature's maximum. `promoted` [d_sae, n] are tokens that are always
    counted as next tokens. Firings held at a time take at most `memory_bytes`, or those of one feature per core; the
    codes are read once for every range of features that fits.
    """
    totals, n_threads, n_fired = totals_of(stream), get_num_threads(), collected.n_fired
    features = features or slice(0, len(n_fired))
    firings = int(n_fired[features].sum())
    most = min(memory_bytes // (n_threads * BYTES_PER_FIRING), -(-firings // (2 * n_threads)))
    ctx_len, nothing = codes.ids.shape[1], np.empty((0, 0), np.int64)
    test_documents = stream.in_test_part()

    def of(part: slice) -> Tables:
        own_features = slice(features.start + part.start, features.start + part.stop)
        fired = _firings(*codes[2:], own_features.start, n_fired[own_features])
        strong = _strong(*fired, (collected.maximum[own_features] * STRONG).astype(np.float32))
        offsets, places = strong
        is_test = np.concatenate([[0], np.cumsum(stream.is_test[places])])
        counted = []

        for shift, wanted in ((0, nothing), (1, promoted[own_features].astype(np.int64)), (-1, nothing)):
            rows = _token_counts(
                offsets, places, stream.ids, stream.is_test, ctx_len, shift, stream.size, wanted, TOKENS_PER_FEATURE
            )
            rows[:, 0] += own_features.start
            counted.append(rows)

        n_test = is_test[offsets[1:]] - is_test[offsets[:-1]]
        statistics = gather(
            stream,
            totals,
            strong,
            fired,
            codes=codes,
            first=own_features.start,
            n_fired=n_fired,
            n_coactive=n_coactive,
        )
        documents = _test_documents_of(offsets, places, stream.owner, test_documents)
        samples = sample(stream, fired, collected, own_features, ctx_len=ctx_len)
        words = count_words(stream.words, strong)

        return Tables(np.diff(offsets), n_test, documents, samples, *counted, words=words, statistics=statistics)

    # Threads of Python, not of numba: numba's own may not be started from several places, and the compiled code releases
    # the lock.
    with ThreadPoolExecutor(n_threads) as pool:
        return joined(list(pool.map(of, ranges(n_fired[features], most))))


def joined(parts: list[Tables]) -> Tables:
    """The tables of consecutive features one after another."""

    def column(values: tuple[Any, ...]) -> Any:
        if isinstance(values[0], tuple):
            return type(values[0])(*map(np.concatenate, zip(*values, strict=True)))
        return np.concatenate(values)

    return Tables(*map(column, zip(*parts, strict=True)))
