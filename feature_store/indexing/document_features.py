"""The strongest features of every document, and in how many documents each feature fires."""

# pyright: reportCallIssue=false

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt
from numba import get_num_threads, njit

from feature_store.indexing.codes import Codes


class Documents(NamedTuple):
    """In how many documents every feature fires, and rows (document, feature) with their means and maxima."""

    n_documents: Int[np.ndarray, " d_sae"]
    rows: UInt[np.ndarray, "rows 2"]
    means: Float[np.ndarray, " rows"]
    maxima: Float[np.ndarray, " rows"]


@njit(nogil=True, cache=True)
def _document_latents(starts, indices, acts, owner, d_sae, keep):  # pragma: no cover (compiled)
    """(n_documents [d_sae], rows of (document, feature), their mean and maximum); `owner` only rises."""
    total, peak = np.zeros(d_sae, np.float64), np.zeros(d_sae, np.float32)
    touched = np.empty(d_sae, np.int64)
    n_documents = np.zeros(d_sae, np.int64)
    size = (np.int64(owner[-1]) - np.int64(owner[0]) + 1) * keep
    rows, means, maxima = np.empty((size, 2), np.uint32), np.empty(size, np.float32), np.empty(size, np.float32)
    n_rows, start = 0, 0

    while start < owner.size:
        end, n_touched = start, 0
        while end < owner.size and owner[end] == owner[start]:
            for j in range(starts[end], starts[end + 1]):
                act, f = acts[j], indices[j]
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


def count_documents(codes: Codes, d_sae: int, keep: int) -> Documents:
    """The strongest `keep` features of every document, on all cores."""
    owner = np.ascontiguousarray(codes.documents).reshape(-1)
    n_shares = get_num_threads()
    firsts = owner[np.arange(n_shares) * owner.size // n_shares]  # every share begins with a document
    cuts = np.unique([0, *np.searchsorted(owner, firsts), owner.size])

    def of(cut: tuple[int, int]) -> Documents:
        first, stop = cut
        starts = codes.starts[first : stop + 1]
        return Documents(*_document_latents(starts, codes.indices, codes.acts, owner[first:stop], d_sae, keep))

    with ThreadPoolExecutor(n_shares) as pool:
        n_documents, *columns = zip(*pool.map(of, itertools.pairwise(cuts.tolist())), strict=True)

    return Documents(np.sum(n_documents, axis=0), *map(np.concatenate, columns))
