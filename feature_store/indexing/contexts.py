"""Top and stratified activating contexts of every feature, with exact counts and histograms, in one pass over a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real, UInt
from numba import get_num_threads, njit, prange

from feature_store.indexing.codes import Codes
from feature_store.packing import N_BINS, N_STRATA

N_LEVELS = 10
BLOCK_BITS = 6  # 64 features in a row belong to one thread, so that no two write to one cache line
BEFORE, AFTER = 20, 11  # tokens of a window before and after its peak: 32 with it
HASH_BEFORE, HASH_AFTER = 8, 3  # tokens around the peak; contexts that have them in common count as the same text
NO_CONTEXT = np.uint32(0xFFFFFFFF)


@dataclass(frozen=True)
class ContextLimits:
    """How many contexts a feature keeps."""

    n_top: int = 20
    n_per_stratum: int = 3


def level_edges(
    histogram: Real[np.ndarray, " bins"], log2_edges: Float[np.ndarray, " edges"]
) -> Float[np.ndarray, " levels"]:
    """The nine activations between ten global levels: deciles of all firings of all features, from their histogram.

    RecSAE (Wang et al., arXiv 2411.06112): all positive activations of all latents are cut into 10 equal shares.
    """
    shares = np.concatenate([[0], np.cumsum(histogram)]) / max(histogram.sum(), 1)
    return np.exp2(np.interp(np.arange(1, N_LEVELS) / N_LEVELS, shares, log2_edges))


@dataclass(frozen=True)
class Collected:
    """The result of the pass. The first axis is the feature; `NO_CONTEXT` marks an empty slot.

    Top contexts are ordered by falling activation, then by place in the stream, with one per different text around the
    peak; `top_copies` counts how often that text occurred, strongly enough for the list, since it
    was listed. Stratum slots are a uniform sample
    without replacement of the contexts whose peak lies in the stratum; `stratum_contexts` counts those contexts.
    `known_density` is what others counted on a whole text, of which the stream holds single contexts.
    """

    n_tokens: int
    log2_edges: Float[np.ndarray, " edges"]
    n_fired: Int[np.ndarray, " d_sae"]
    total: Float[np.ndarray, " d_sae"]
    maximum: Float[np.ndarray, " d_sae"]
    histogram: Int[np.ndarray, "d_sae bins"]
    top_act: Float[np.ndarray, "d_sae n_top"]
    top_context: UInt[np.ndarray, "d_sae n_top"]
    top_position: UInt[np.ndarray, "d_sae n_top"]
    top_copies: UInt[np.ndarray, "d_sae n_top"]
    stratum_act: Float[np.ndarray, "d_sae strata n"]
    stratum_context: UInt[np.ndarray, "d_sae strata n"]
    stratum_position: UInt[np.ndarray, "d_sae strata n"]
    stratum_contexts: Int[np.ndarray, "d_sae strata"]
    known_density: Float[np.ndarray, " d_sae"] | None = None

    def density(self, features: slice) -> Float[np.ndarray, " features"]:
        """The share of the tokens on which each of some features fires: as it is known, otherwise as it was counted."""
        if self.known_density is not None:
            return self.known_density[features]
        return self.n_fired[features] / self.n_tokens

    def level_edges(self) -> Float[np.ndarray, " edges"]:
        """The nine activations between the ten global levels."""
        return level_edges(self.histogram.sum(0), self.log2_edges)

    def peaks(self, features: slice) -> Float[np.ndarray, "features peaks"]:
        """Peak activations of the contexts of some features: the top ones by rank, then stratum by stratum; 0: no slot."""
        strata = self.stratum_act[features]
        return np.concatenate([self.top_act[features], strata.reshape(len(strata), -1)], axis=1)


@njit(cache=True)
def mixed_number(value):  # pragma: no cover (compiled)
    """A 64-bit hash (the finaliser of splitmix64, Steele et al. 2014)."""
    value = np.uint64(value)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True)
def _text_hash(row, position):  # pragma: no cover (compiled)
    value = np.uint64(0x9E3779B97F4A7C15)
    for p in range(max(0, position - HASH_BEFORE), min(row.size, position + HASH_AFTER + 1)):
        value = mixed_number(value + np.uint64(row[p]) + np.uint64(1))
    return value


@njit(cache=True)
def _bin(act, low, width):  # pragma: no cover (compiled)
    return min(max(int((np.log2(act) - low) / width), 0), N_BINS - 1)


@njit(cache=True)
def _offer_top(act, context, position, text, acts, contexts, positions, hashes, copies):  # pragma: no cover
    """Inserts a candidate into one feature's list, ordered by (falling act, context); one entry per text."""
    size = acts.size
    worst = size - 1

    for slot in range(size):
        if contexts[slot] == NO_CONTEXT:
            break
        if hashes[slot] == text:
            copies[slot] += 1
            if act <= acts[slot]:
                return
            worst = slot
            break

    seen = copies[worst] if contexts[worst] != NO_CONTEXT and hashes[worst] == text else 1
    if contexts[worst] != NO_CONTEXT and act <= acts[worst]:
        return

    slot = worst
    while slot > 0 and (contexts[slot - 1] == NO_CONTEXT or acts[slot - 1] < act):
        acts[slot], contexts[slot], positions[slot] = acts[slot - 1], contexts[slot - 1], positions[slot - 1]
        hashes[slot], copies[slot] = hashes[slot - 1], copies[slot - 1]
        slot -= 1

    acts[slot], contexts[slot], positions[slot], hashes[slot], copies[slot] = act, context, position, text, seen


@njit(cache=True)
def _offer_sample(act, context, position, key, acts, contexts, positions, keys):  # pragma: no cover (compiled)
    """Keeps the candidates with the smallest keys: a uniform sample that does not depend on the order of arrival."""
    if keys.size == 0:
        return

    slot = keys.size - 1
    if key >= keys[slot]:
        return

    while slot > 0 and keys[slot - 1] > key:
        acts[slot], contexts[slot], positions[slot] = acts[slot - 1], contexts[slot - 1], positions[slot - 1]
        keys[slot] = keys[slot - 1]
        slot -= 1

    acts[slot], contexts[slot], positions[slot], keys[slot] = act, context, position, key


@njit(parallel=True, cache=True)
def _collect(
    ids, starts, indices, acts, first_context, seed, low, width, scratch, counts, top, sample
):  # pragma: no cover
    for share in prange(len(scratch[2])):
        _collect_share(share, ids, starts, indices, acts, first_context, seed, low, width, scratch, counts, top, sample)


@njit(cache=True)
def _collect_share(
    share, ids, starts, indices, acts, first_context, seed, low, width, scratch, counts, top, sample
):  # pragma: no cover (compiled)
    """The part of the pass for one share of the features; features are independent, so the number of shares changes
    nothing.
    """
    best_act, best_position, touched = scratch[0], scratch[1], scratch[2][share]
    n_shares = len(scratch[2])
    n_fired, total, maximum, histogram, stratum_contexts = counts
    top_act, top_context, top_position, top_hash, top_copies = top
    stratum_act, stratum_context, stratum_position, stratum_key = sample

    for c in range(ids.shape[0]):
        n_touched = 0
        for p in range(ids.shape[1]):
            token = c * ids.shape[1] + p
            for j in range(starts[token], starts[token + 1]):
                act, f = acts[j], indices[j]
                if (f >> BLOCK_BITS) % n_shares != share:
                    continue
                n_fired[f] += 1
                total[f] += act
                maximum[f] = max(maximum[f], act)
                histogram[f, _bin(act, low, width)] += 1
                if best_act[f] == 0:
                    touched[n_touched] = f
                    n_touched += 1
                if act > best_act[f]:
                    best_act[f], best_position[f] = act, p
        context = np.uint32(first_context + c)
        for t in range(n_touched):
            f = touched[t]
            act, p = best_act[f], best_position[f]
            best_act[f] = 0
            if top_context[f, -1] == NO_CONTEXT or act > top_act[f, -1]:
                text = _text_hash(ids[c], p)
                _offer_top(
                    act, context, p, text, top_act[f], top_context[f], top_position[f], top_hash[f], top_copies[f]
                )
            s = _bin(act, low, width) * N_STRATA // N_BINS
            stratum_contexts[f, s] += 1
            key = mixed_number(mixed_number(np.uint64(seed) + np.uint64(f)) + np.uint64(context))
            _offer_sample(
                act,
                context,
                p,
                key,
                stratum_act[f, s],
                stratum_context[f, s],
                stratum_position[f, s],
                stratum_key[f, s],
            )


class ContextCollector:
    """Feed it batches of contexts in stream order, then `finish`.

    `pilot_acts` are positive activations of a small sample; they fix the log-spaced bins for the whole pass.
    Memory: d_sae * (n_top * 23 + 8 * n_per_stratum * 18 + 180) bytes.
    """

    def __init__(self, d_sae: int, limits: ContextLimits, pilot_acts: Float[np.ndarray, " pilots"], seed: int = 0):
        low, high = np.log2(np.quantile(pilot_acts, [0.001, 1.0])) if pilot_acts.size else (0.0, 1.0)
        self._low, self._width = float(low), max(float(high - low) * 1.05, 1e-3) / N_BINS
        self._seed = seed
        shares = (get_num_threads(), d_sae)
        self._scratch = np.zeros(d_sae, np.float32), np.zeros(d_sae, np.int64), np.zeros(shares, np.int64)
        self._counts = (
            np.zeros(d_sae, np.int64),
            np.zeros(d_sae, np.float64),
            np.zeros(d_sae, np.float32),
            np.zeros((d_sae, N_BINS), np.int64),
            np.zeros((d_sae, N_STRATA), np.int64),
        )
        shape = (d_sae, limits.n_top)
        self._top = (*_empty_slots(shape), np.zeros(shape, np.uint64), np.zeros(shape, np.uint32))
        shape = (d_sae, N_STRATA, limits.n_per_stratum)
        self._sample = (*_empty_slots(shape), np.full(shape, np.iinfo(np.uint64).max, np.uint64))

    def add(self, codes: Codes, contexts: slice) -> None:
        """Some consecutive contexts of the codes. Positions that the dictionary does not read have no latents."""
        _collect(
            np.ascontiguousarray(codes.ids[contexts]),
            codes.starts_of(contexts),
            codes.indices,
            codes.acts,
            contexts.start,
            self._seed,
            self._low,
            self._width,
            self._scratch,
            self._counts,
            self._top,
            self._sample,
        )

    def finish(self, n_tokens: int) -> Collected:
        """The result for a stream of which the dictionary read `n_tokens`."""
        n_fired, total, maximum, histogram, stratum_contexts = self._counts
        top_act, top_context, top_position, _, top_copies = self._top
        stratum_act, stratum_context, stratum_position, _ = self._sample
        return Collected(
            n_tokens, log2_edges=self._low + self._width * np.arange(N_BINS + 1),
            n_fired=n_fired, total=total, maximum=maximum, histogram=histogram,
            top_act=top_act, top_context=top_context, top_position=top_position, top_copies=top_copies,
            stratum_act=stratum_act, stratum_context=stratum_context, stratum_position=stratum_position,
            stratum_contexts=stratum_contexts,
        )  # fmt: skip


class _Slots(NamedTuple):
    """Activations, contexts and positions of the contexts that are kept, one slot each."""

    acts: np.ndarray
    contexts: np.ndarray
    positions: np.ndarray


def _empty_slots(shape: tuple[int, ...]) -> _Slots:
    return _Slots(np.zeros(shape, np.float32), np.full(shape, NO_CONTEXT, np.uint32), np.zeros(shape, np.uint16))
