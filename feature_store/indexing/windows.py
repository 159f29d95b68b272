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

STRATUM, UNIFORM = GROUPS.index("stratum"), GROUPS.index("uniform")


class Peaks(NamedTuple):
    """A feature's share of firings below each peak (top, strata, uniform), and the peaks of its uniform contexts."""

    weaker: Float[np.ndarray, " peaks"]
    uniform: Int[np.ndarray, " n"]
    available: int


def windows_of(collected: Collected, codes: Codes, feature: int, peaks: Peaks) -> Pack:
    """The stored windows of one feature, cut around their peaks, with the feature's activations in them."""
    slots = _filled(collected, "top", feature)
    for stratum in range(collected.stratum_act.shape[1]):
        slots += _filled(collected, "stratum", (feature, stratum))

    n_top, n_per_stratum = collected.top_act.shape[1], collected.stratum_act.shape[2]
    n_strata, length = collected.stratum_act.shape[1], codes.ids.shape[1]
    for rank, place in enumerate(peaks.uniform[peaks.uniform >= 0].tolist()):
        slots.append(_Slot(UNIFORM, 0, rank, context=place // length, position=place % length))

    windows = np.zeros(len(slots), WINDOW)
    where = np.array([(slot.context, slot.position) for slot in slots], np.int64).reshape(-1, 2)
    bounds, lengths, places, values = _cut(where, *codes[1:], feature)

    for number, slot in enumerate(slots):
        first, start, end = bounds[number]
        inclusion, copies, peak = 1.0, 1, slot.rank
        if slot.group == UNIFORM:
            peak = n_top + n_strata * n_per_stratum + slot.rank
            inclusion = min(1.0, len(peaks.uniform) / peaks.available)
        elif slot.group == STRATUM:
            peak = n_top + slot.stratum * n_per_stratum + slot.rank
            available = collected.stratum_contexts[feature, slot.stratum]
            inclusion = min(1.0, n_per_stratum / available)
        else:
            copies = min(int(collected.top_copies[feature, slot.rank]), 65535)
        windows[number] = (
            slot.group, slot.rank, slot.stratum, end - start, slot.position - start, lengths[number], copies,
            codes.documents[slot.context, slot.position], slot.context, slot.position - first, peaks.weaker[peak],
            inclusion,
        )  # fmt: skip

    parts = [codes.ids[c, start:end] for (c, _), (_, start, end) in zip(where, bounds, strict=True)]
    ids = np.concatenate(parts) if parts else np.empty(0, np.int64)

    return Pack(windows, ids, places, quantise(values, collected.maximum[feature]))


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


class _Slot(NamedTuple):
    """A place in the text where a feature fires, as `ContextCollector` kept it."""

    group: int  # into `feature_store.packing.GROUPS`
    stratum: int
    rank: int
    context: int
    position: int


def _filled(collected: Collected, kind: str, where: int | tuple[int, int]) -> list[_Slot]:
    arrays = [getattr(collected, f"{kind}_{name}")[where] for name in ("context", "position")]
    stratum = where[1] if isinstance(where, tuple) else 0
    filled = (slot for slot in zip(*arrays, strict=True) if slot[0] != NO_CONTEXT)
    return [
        _Slot(GROUPS.index(kind), stratum, rank, context=int(context), position=int(position))
        for rank, (context, position) in enumerate(filled)
    ]
