"""The strongest firings of features, with the tokens of their contexts, from a dictionary's feature store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt

from feature_store import queries
from feature_store.store import Store
from sae.apply.heads.attribution import Firing
from sae.errors import DataError

DOCUMENTS_HELD = 4096  # whose tokens are in memory at a time


class StoredFiring(NamedTuple):
    """A firing as the store has it: the rank among its feature's, its place in its document, and its activation."""

    firing: Firing
    rank: int
    document: int
    position: int
    act: float


def most_frequent(store: Store, n: int) -> list[int]:
    """The features that fire on most tokens and have contexts; of equal ones the first."""
    fired = store.columns.numbers["n_fired"]
    order = np.argsort(-fired, kind="stable")[:n]
    return order[fired[order] > 0].tolist()


class StoredText:
    """The tokens of the text that a store was made of, which follow each other in the order of documents."""

    def __init__(self, store: Store):
        self.store, self.starts, self.length = store, store.document_starts, store.meta["ctx_len"]
        self._document = lru_cache(DOCUMENTS_HELD)(self._read)

    def between(self, first: int, end: int) -> UInt[np.ndarray, " tokens"]:
        """Tokens first to end - 1; raises `DataError` if the store keeps no text of documents."""
        document, parts = int(np.searchsorted(self.starts, first, side="right")) - 1, []
        while first < end:
            start = int(self.starts[document])
            part = self._document(document)[first - start : end - start]
            parts.append(part)
            first, document = first + len(part), document + 1
        return np.concatenate(parts)

    def contexts(self, n: int) -> Iterator[UInt[np.ndarray, " ctx_len"]]:
        """Up to `n` whole contexts, the first ones."""
        whole = (int(self.starts[-1]) + len(self._document(len(self.starts) - 1))) // self.length
        for number in range(min(n, whole)):
            yield self.between(number * self.length, (number + 1) * self.length)

    def _read(self, document: int) -> UInt[np.ndarray, " tokens"]:
        ids = queries.document_text(self.store, document)
        if ids is None:
            raise DataError(
                "the feature store keeps no text of documents, which attribution reads. Build the index again with "
                "index.keep_text: true."
            )
        return ids


def strongest_firings(text: StoredText, features: Iterable[int], most: int, *, packing: str) -> Iterator[StoredFiring]:
    """Up to `most` strongest firings of every feature, each with the tokens that the model read up to there."""
    for feature in features:
        for window in queries.windows(text.store, feature, "top")[:most]:
            start, context = int(text.starts[window.document]), window.context * text.length
            begin = max(start, context)  # of the document in its context
            last = begin + window.place
            ids = text.between(begin if packing == "separate" else context, last + 1).astype(np.int64)
            act = float(window.acts[window.peak])
            yield StoredFiring(Firing(feature, ids), window.rank, window.document, last - start, act=act)
