"""Hard negatives: windows of a feature's nearest features in which the feature itself does not fire."""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Integer, Shaped, UInt
from numba import njit

from feature_store.indexing.codes import Codes
from feature_store.indexing.contexts import AFTER, BEFORE, NO_CONTEXT

NEGATIVE = np.dtype([("source", "<u4"), ("rank", "<u1"), ("kind", "<u1")])  # kind 0: by cosine, 1: by co-activation
WINDOWS_PER_SOURCE = 3
PER_KIND = 15


@njit(cache=True)
def _fires(feature, starts, indices, ctx_len, context, position):  # pragma: no cover (compiled)
    first, stop = max(0, position - BEFORE), min(ctx_len, position + AFTER + 1)
    for j in range(starts[context * ctx_len + first], starts[context * ctx_len + stop]):
        if indices[j] == feature:
            return True
    return False


@njit(cache=True)
def _negatives(
    sources, top_context, top_position, starts, indices, ctx_len, per_kind, per_source, start
):  # pragma: no cover
    """Rows (feature, source, rank, kind): first every source's strongest usable window, then every second one, ..."""
    n_features, n_kinds, n_sources = sources.shape
    rows = np.empty((n_features * n_kinds * per_kind, 4), np.int64)
    n_rows = 0

    for f in range(start, start + n_features):
        first = n_rows
        for kind in range(n_kinds):
            n = 0
            rank = np.zeros(n_sources, np.int64)
            for _ in range(per_source):
                for s in range(n_sources):
                    source = sources[f - start, kind, s]
                    if n >= per_kind or source == f:
                        continue
                    while rank[s] < top_context.shape[1]:
                        r = rank[s]
                        rank[s] += 1
                        c, p = top_context[source, r], top_position[source, r]
                        if c == NO_CONTEXT:
                            rank[s] = top_context.shape[1]
                            break
                        known = False
                        for q in range(first, n_rows):
                            known |= (
                                top_context[rows[q, 1], rows[q, 2]] == c and top_position[rows[q, 1], rows[q, 2]] == p
                            )
                        if not known and not _fires(f, starts, indices, ctx_len, np.int64(c), p):
                            rows[n_rows] = f, source, r, kind
                            n_rows += 1
                            n += 1
                            break

    return rows[:n_rows].copy()


def hard_negatives(
    sources: Integer[np.ndarray, "features kinds n"], top_context: UInt[np.ndarray, "d_sae n_top"], top_position: UInt[np.ndarray, "d_sae n_top"],
    codes: Codes, *, start: int = 0,
) -> list[Shaped[np.ndarray, " _windows"]]:  # fmt: skip
    """Per feature a record array of `NEGATIVE`: windows of other features in which this feature does not fire.

    `sources` [features, kinds, n] are the nearest features of the features from `start` on, by each kind of nearness.
    Ranks count the sources' top windows [d_sae, n_top].
    """
    rows = _negatives(
        sources.astype(np.int64), top_context, top_position.astype(np.int64), codes.starts, codes.indices,
        codes.ids.shape[1], PER_KIND, WINDOWS_PER_SOURCE, start,
    )  # fmt: skip
    cuts = np.searchsorted(rows[:, 0], start + np.arange(len(sources) + 1))
    records = np.zeros(len(rows), NEGATIVE)
    records["source"], records["rank"], records["kind"] = rows[:, 1], rows[:, 2], rows[:, 3]
    return [records[a:b] for a, b in itertools.pairwise(cuts)]
