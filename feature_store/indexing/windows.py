"""Windows of text around peaks and around random tokens, cut where their documents end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numba import njit

from feature_store.indexing.codes import Codes
from feature_store.indexing.contexts import AFTER, BEFORE, NO_CONTEXT, Collected
from feature_store.packing import GROUPS, WINDOW, Pack, quantise
from feature_store.records import RandomWindow

TOP, STRATUM, UNIFORM = (GROUPS.index(name) for name in ("top", "stratum", "uniform"))


class Peaks(NamedTuple):
    """A feature's share of firings below each peak (top, strata, uniform), and the peaks of its uniform contexts."""

    weaker: Float[np.ndarray, " peaks"]
    uniform: Int[np.ndarray, " n"]
    available: int


def windows_of(collected: Collected, codes: Codes, feature: int, peaks: Peaks) -> Pack:
    """The stored windows of one feature, cut around their peaks, with the feature's activations in them."""
    slots = _slots(collected, feature, peaks, codes.ids.shape[1])
    where = np.stack([slots.context, slots.position], axis=1)
    bounds, n_acts, places, values = _cut(where, *codes[1:], feature)
    first, start, end = bounds.T
    length = end - start

    windows = np.zeros(len(where), WINDOW)
    windows["group"], windows["rank"], windows["stratum"] = slots.group, slots.rank, slots.stratum
    windows["context"], windows["document"] = slots.context, codes.documents[slots.context, slots.position]
    windows["length"], windows["n_acts"] = length, n_acts
    windows["peak"], windows["place"] = slots.position - start, slots.position - first
    windows["copies"], windows["inclusion"] = slots.copies, slots.inclusion
    windows["percentile"] = peaks.weaker[slots.number]

    ends = np.cumsum(length)
    tokens = np.arange(ends[-1] if len(ends) else 0) + np.repeat(
        slots.context * codes.ids.shape[1] + start - (ends - length), length
    )
    return Pack(windows, codes.ids.reshape(-1)[tokens], places, quantise(values, collected.maximum[feature]))


class _Slots(NamedTuple):
    """Places in the text where a feature fires, as `ContextCollector` kept them: top ones, strata, uniform draws.

    `number` is the place of a slot's peak in `Peaks.weaker`.
    """

    group: Int[np.ndarray, " slots"]  # into `feature_store.packing.GROUPS`
    stratum: Int[np.ndarray, " slots"]
    rank: Int[np.ndarray, " slots"]
    context: Int[np.ndarray, " slots"]
    position: Int[np.ndarray, " slots"]
    number: Int[np.ndarray, " slots"]
    copies: Int[np.ndarray, " slots"]
    inclusion: Float[np.ndarray, " slots"]


def _slots(collected: Collected, feature: int, peaks: Peaks, ctx_len: int) -> _Slots:
    """The slots of one feature that hold a place."""
    uniform, n_top = peaks.uniform[peaks.uniform >= 0], collected.top_context.shape[1]
    n_strata, n_each = collected.stratum_context.shape[1:]
    strata = np.repeat(np.arange(n_strata), n_each)
    contexts = np.concatenate([
        collected.top_context[feature], collected.stratum_context[feature].reshape(-1), uniform // ctx_len
    ]).astype(np.int64)  # fmt: skip
    positions = np.concatenate([
        collected.top_position[feature], collected.stratum_position[feature].reshape(-1), uniform % ctx_len
    ]).astype(np.int64)  # fmt: skip

    sizes = n_top, n_strata * n_each, len(uniform)
    sampled = np.minimum(1.0, n_each / np.maximum(collected.stratum_contexts[feature], 1))[strata]
    drawn = min(1.0, len(peaks.uniform) / max(peaks.available, 1))
    columns = _Slots(
        np.repeat([TOP, STRATUM, UNIFORM], sizes),
        np.concatenate([np.zeros(n_top, np.int64), strata, np.zeros(len(uniform), np.int64)]),
        rank=np.concatenate([np.arange(n_top), np.tile(np.arange(n_each), n_strata), np.arange(len(uniform))]),
        context=contexts,
        position=positions,
        number=np.arange(len(contexts)),
        copies=np.concatenate([np.minimum(collected.top_copies[feature], 65535), np.ones(sum(sizes[1:]), np.int64)]),
        inclusion=np.concatenate([np.ones(n_top), sampled, np.full(len(uniform), drawn)]),
    )
    is_filled = contexts != NO_CONTEXT  # slots are filled from the first on
    return _Slots(*(column[is_filled] for column in columns))


@njit(cache=True)
def _window(owner, position):  # pragma: no cover (compiled)
    """(first token of the document in its context, start, end) of the window around a token.

    The window ends with the document, so that it contains no text of a document of the other part.
    """
    first, end = position, position + 1
    while first > 0 and owner[first - 1] == owner[position]:
        first -= 1
    while end < owner.size and owner[end] == owner[position]:
        end += 1
    return first, max(first, position - BEFORE), min(end, position + AFTER + 1)


@njit(cache=True)
def _cut(where, documents, starts, indices, acts, feature):  # pragma: no cover (compiled)
    """Cuts windows around (context, position) and gathers a feature's activations in them.

    Returns (first token of the document, start, end) [windows, 3]; the number of tokens on which the feature fires
    [windows]; and, over all windows in a row, these tokens' places in their window and activations.
    """
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
            token = c * documents.shape[1] + p
            for j in range(starts[token], starts[token + 1]):
                if indices[j] == feature:
                    places[n], values[n] = p - start, acts[j]
                    n += 1
                    break
        lengths[w] = n - before

    return bounds, lengths, places[:n].copy(), values[:n].copy()


def random_windows(
    codes: Codes, is_read: Bool[np.ndarray, "contexts ctx_len"], n_windows: int, seed: int
) -> list[RandomWindow]:
    """Windows around tokens drawn uniformly from those that the dictionary read."""
    n_contexts, ctx_len = codes.ids.shape
    windows: list[RandomWindow] = []

    for token in np.random.default_rng(seed).integers(0, n_contexts * ctx_len, 4 * n_windows).tolist():
        context, position = divmod(token, ctx_len)
        if len(windows) == n_windows or not is_read[context, position]:
            continue
        documents = codes.documents[context]
        first, start, end = _window(documents, position)
        cut = slice(start, end)
        token = context * ctx_len
        latents = np.unique(codes.indices[codes.latents_of(slice(token + start, token + end))])
        ids = codes.ids[context, cut]
        windows.append(RandomWindow(int(documents[position]), ids, position - start, position - first, latents=latents))

    return windows
