"""Counts over sparse codes: tokens of every feature, strongest features of every document, windows to keep."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from feature_store.contexts import AFTER, BEFORE, NO_CONTEXT, Collected
from feature_store.formats import breaks_line, classes_of, first_of_same_text, formats_of, places_of, position_bin
from feature_store.packing import WINDOW, Pack, quantise
from feature_store.statistics import GROUPS, Statistics, Stream, gather

TOKENS_PER_FEATURE = 64
STRONG = 1 / 3


class Codes(NamedTuple):
    """A stream of contexts and its sparse codes: ids [contexts, ctx_len], latents and acts [contexts, ctx_len, k]."""

    ids: np.ndarray
    documents: np.ndarray
    indices: np.ndarray
    acts: np.ndarray


def test_documents(n_documents: int) -> np.ndarray:
    """Which documents are kept for testing explanations: half of them, by a hash of their index."""
    return (mixed(np.arange(n_documents)) & np.uint64(1)).astype(bool)


def mixed(numbers: np.ndarray) -> np.ndarray:
    """A 64-bit hash of every number (the finaliser of splitmix64)."""
    x = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True)
def _firings_by_feature(indices, acts, least):  # pragma: no cover (compiled)
    """(offsets, flat token places, activations) of the firings of at least `least` [d_sae], by feature, in order."""
    d_sae = least.size
    offsets = np.zeros(d_sae + 1, np.int64)
    n_tokens, k = indices.shape
    for t in range(n_tokens):
        for j in range(k):
            if acts[t, j] > 0 and acts[t, j] >= least[indices[t, j]]:
                offsets[indices[t, j] + 1] += 1
    for f in range(d_sae):
        offsets[f + 1] += offsets[f]
    place = offsets[:-1].copy()
    tokens, values = np.empty(offsets[-1], np.uint32), np.empty(offsets[-1], np.float32)
    for t in range(n_tokens):
        for j in range(k):
            f = indices[t, j]
            if acts[t, j] > 0 and acts[t, j] >= least[f]:
                tokens[place[f]], values[place[f]] = t, acts[t, j]
                place[f] += 1
    return offsets, tokens, values


@njit(cache=True)
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


@njit(cache=True)
def _test_documents_of(offsets, firings, owner, is_test):  # pragma: no cover (compiled)
    """Test documents that hold a strong firing, by feature."""
    found = np.zeros(offsets.size - 1, np.int64)
    for f in range(offsets.size - 1):
        last = np.int64(-1)
        for p in range(offsets[f], offsets[f + 1]):
            document = np.int64(owner[firings[p]])
            if document != last and is_test[document]:
                found[f] += 1
            last = document
    return found


@njit(cache=True)
def _document_latents(indices, acts, owner, d_sae, keep):  # pragma: no cover (compiled)
    """(n_documents [d_sae], rows of (document, feature), their mean and maximum); `owner` only rises."""
    total, peak = np.zeros(d_sae, np.float64), np.zeros(d_sae, np.float32)
    touched = np.empty(d_sae, np.int64)
    n_documents = np.zeros(d_sae, np.int64)
    size = (owner[-1] + 1) * keep
    rows, means, maxima = np.empty((size, 2), np.uint32), np.empty(size, np.float32), np.empty(size, np.float32)
    n_rows, start = 0, 0
    while start < owner.size:
        end, n_touched = start, 0
        while end < owner.size and owner[end] == owner[start]:
            for j in range(indices.shape[1]):
                act = acts[end, j]
                if act > 0:
                    f = indices[end, j]
                    if total[f] == 0:
                        touched[n_touched] = f
                        n_touched += 1
                    total[f] += act
                    peak[f] = max(peak[f], act)
            end += 1
        seen = np.sort(touched[:n_touched])
        order = np.argsort(-total[seen], kind="mergesort")
        for r in range(n_touched):
            f = seen[order[r]]
            n_documents[f] += 1
            if r < keep:
                rows[n_rows, 0], rows[n_rows, 1] = owner[start], f
                means[n_rows], maxima[n_rows] = total[f] / (end - start), peak[f]
                n_rows += 1
        for r in range(n_touched):
            total[seen[r]], peak[seen[r]] = 0, 0
        start = end
    return n_documents, rows[:n_rows].copy(), means[:n_rows].copy(), maxima[:n_rows].copy()


class Tables(NamedTuple):
    """Counts of one pass over the codes."""

    n_strong: np.ndarray
    n_strong_test: np.ndarray
    n_documents_strong_test: np.ndarray
    current: np.ndarray
    following: np.ndarray
    preceding: np.ndarray
    n_documents: np.ndarray
    document_rows: np.ndarray
    document_means: np.ndarray
    document_maxima: np.ndarray
    stream: Stream
    statistics: Statistics


def _stream(codes: Codes, vocabulary: list[bytes], is_test: np.ndarray) -> tuple[Stream, np.ndarray]:
    """(the tokens with what positions and formats they have, tokens since the start of the document)."""
    ids = np.ascontiguousarray(codes.ids).reshape(-1)
    owner = np.ascontiguousarray(codes.documents).reshape(-1)
    places = places_of(codes.documents)
    formats = formats_of(ids, places, classes_of(vocabulary), breaks_line(vocabulary))
    group = (mixed(np.arange(len(is_test))) >> np.uint64(8)) % np.uint64(GROUPS)
    normal = first_of_same_text(vocabulary)[ids]
    return Stream(ids, normal, is_test[owner], group.astype(np.int64)[owner], position_bin(places), formats), places


def count(
    codes: Codes, maximum: np.ndarray, vocabulary: list[bytes], is_test: np.ndarray, promoted: np.ndarray, keep: int,
    n_coactive: int = 10,
) -> Tables:  # fmt: skip
    """Token tables and statistics of the firings and the strongest `keep` features of every document.

    A firing is strong at `STRONG` of the feature's `maximum` [d_sae] or more. `is_test` [documents]; `promoted`
    [d_sae, n] are tokens whose following-counts are always reported.
    """
    d_sae = len(maximum)
    ctx_len = codes.ids.shape[1]
    stream, places = _stream(codes, vocabulary, is_test)
    indices = codes.indices.reshape(stream.ids.size, -1)
    acts = codes.acts.reshape(stream.ids.size, -1)
    offsets, firings, _ = _firings_by_feature(indices, acts, (maximum * STRONG).astype(np.float32))
    firing_is_test = np.concatenate([[0], np.cumsum(stream.is_test[firings])])
    n_strong_test = firing_is_test[offsets[1:]] - firing_is_test[offsets[:-1]]
    nothing = np.empty((d_sae, 0), np.int64)
    size = len(vocabulary)
    counts = [
        _token_counts(offsets, firings, stream.ids, stream.is_test, ctx_len, shift, size, wanted, TOKENS_PER_FEATURE)
        for shift, wanted in ((0, nothing), (1, promoted.astype(np.int64)), (-1, nothing))
    ]
    fired = _firings_by_feature(indices, acts, np.zeros(d_sae, np.float32))
    statistics = gather(stream, (offsets, firings), fired, (indices, acts), places == 0, size, n_coactive)
    owner = np.ascontiguousarray(codes.documents).reshape(-1)
    rows = _document_latents(indices, acts, owner, d_sae, keep)
    current, following, preceding = counts
    n_documents = _test_documents_of(offsets, firings, owner, is_test)
    return Tables(
        np.diff(offsets), n_strong_test, n_documents, current, following, preceding, *rows, stream, statistics
    )


def _percentiles(collected: Collected, feature: int, acts: np.ndarray) -> np.ndarray:
    """Share of a feature's firings below each activation, by its histogram, linear inside a bin."""
    below = np.concatenate([[0], np.cumsum(collected.histogram[feature])]) / max(collected.n_fired[feature], 1)
    return np.interp(np.log2(np.maximum(acts, 1e-30)), collected.log2_edges, below)


def windows_of(collected: Collected, codes: Codes, feature: int) -> Pack:
    """The kept windows of one feature, cut around their peaks, with the feature's activations in them."""
    kept = [(0, r, 0, *slot) for r, slot in enumerate(_filled(collected, "top", feature))]
    for s in range(collected.stratum_act.shape[1]):
        kept += [(1, r, s, *slot) for r, slot in enumerate(_filled(collected, "stratum", (feature, s)))]
    windows = np.zeros(len(kept), WINDOW)
    where = np.array([slot[4:] for slot in kept], np.int64).reshape(-1, 2)
    bounds, lengths, places, values = _cut(where, codes.documents, codes.indices, codes.acts, feature)
    percentiles = _percentiles(collected, feature, np.array([slot[3] for slot in kept]))
    for number, (is_stratum, rank, stratum, _, context, position) in enumerate(kept):
        first, start, end = bounds[number]
        available = collected.stratum_contexts[feature, stratum]
        inclusion = min(1.0, collected.stratum_act.shape[2] / available) if is_stratum else 1.0
        copies = 1 if is_stratum else min(int(collected.top_copies[feature, rank]), 65535)
        windows[number] = (
            is_stratum, rank, stratum, end - start, position - start, lengths[number], copies,
            codes.documents[context, position], context, position - first, percentiles[number], inclusion,
        )  # fmt: skip
    parts = [codes.ids[c, start:end] for (c, _), (_, start, end) in zip(where, bounds, strict=True)]
    ids = np.concatenate(parts) if parts else np.empty(0, np.int64)
    return Pack(windows, ids, places, quantise(values, collected.maximum[feature]))


@njit(cache=True)
def _window(owner, position):  # pragma: no cover (compiled)
    """(first token of the document in its context, start, end) of the window around a token.

    The window ends where the document does, so that it holds no text of a document of the other part.
    """
    first, end = position, position + 1
    while first > 0 and owner[first - 1] == owner[position]:
        first -= 1
    while end < owner.size and owner[end] == owner[position]:
        end += 1
    return first, max(first, position - BEFORE), min(end, position + AFTER + 1)


@njit(cache=True)
def _cut(where, documents, indices, acts, feature):  # pragma: no cover (compiled)
    """Of windows around (context, position): (first token of the document, start, end) [windows, 3], the number of tokens
    that a feature fires on [windows], and of all windows in a row these tokens' places and activations."""
    bounds, lengths = np.empty((len(where), 3), np.int64), np.empty(len(where), np.int64)
    places = np.empty(len(where) * (BEFORE + AFTER + 1), np.int64)
    values = np.empty(places.size, np.float32)
    n = 0
    for w in range(len(where)):
        c, position = where[w]
        first, start, end = _window(documents[c], position)
        bounds[w] = first, start, end
        before = n
        for p in range(start, end):
            act = np.float32(0)
            for j in range(indices.shape[2]):
                if indices[c, p, j] == feature:
                    act = acts[c, p, j]
            if act != 0:
                places[n], values[n] = p - start, act
                n += 1
        lengths[w] = n - before
    return bounds, lengths, places[:n].copy(), values[:n].copy()


class RandomWindow(NamedTuple):
    """A window around a token drawn uniformly, cut as windows around peaks are; every feature that fires in it."""

    document: int
    token_ids: np.ndarray
    peak: int
    place: int
    latents: np.ndarray


def random_windows(codes: Codes, n_windows: int, seed: int) -> list[RandomWindow]:
    """Windows around tokens drawn uniformly from those that the dictionary read (some latent fires on them)."""
    n_contexts, ctx_len = codes.ids.shape
    found: list[RandomWindow] = []
    for token in np.random.default_rng(seed).integers(0, n_contexts * ctx_len, 4 * n_windows).tolist():
        context, position = divmod(token, ctx_len)
        if len(found) == n_windows or not (codes.acts[context, position] > 0).any():
            continue
        documents = codes.documents[context]
        first, start, end = _window(documents, position)
        cut = slice(start, end)
        latents = np.unique(codes.indices[context, cut][codes.acts[context, cut] > 0])
        ids = codes.ids[context, cut]
        found.append(RandomWindow(int(documents[position]), ids, position - start, position - first, latents))
    return found


def _filled(collected: Collected, kind: str, where: int | tuple[int, int]) -> list[tuple[float, int, int]]:
    arrays = [getattr(collected, f"{kind}_{name}")[where] for name in ("act", "context", "position")]
    return [(float(a), int(c), int(p)) for a, c, p in zip(*arrays, strict=True) if c != NO_CONTEXT]
