"""What explainers may look at, read once from a context generation and split by document into explain and test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from feature_store import queries
from feature_store.queries import Store
from feature_store.records import Window
from feature_store.tables import STRONG

SPLIT_ID = "document-hash-half-v1"


@dataclass(frozen=True)
class TokenCounts:
    """How often a feature fired strongly on (or before) a token, and how often the token occurs, in one part."""

    hits: dict[int, int]
    occurrences: np.ndarray
    n_strong: int
    n_tokens: int

    def balanced_accuracy(self, tokens: set[int]) -> float:
        """(recall + 1 - false positive rate) / 2 of the rule "fires strongly exactly on these tokens"; chance is 0.5."""
        if self.n_strong == 0 or self.n_strong >= self.n_tokens:
            return float("nan")
        hits = sum(self.hits.get(t, 0) for t in tokens)
        false = sum(int(self.occurrences[t]) for t in tokens) - hits
        return (hits / self.n_strong + 1 - max(false, 0) / (self.n_tokens - self.n_strong)) / 2


class Evidence:
    """Counts, windows and logits of every feature of one store."""

    def __init__(self, store: Store):
        self.store = store
        self.firings = queries.firing_counts(store)
        counts = np.array(queries.token_counts(store))
        self._occurrences = {"explain": counts[:, 1], "test": counts[:, 2]}
        n_test = store.meta["tokens_test"]
        self._n_tokens = {"explain": store.meta["tokens_all"] - n_test, "test": n_test}
        self.promoted = queries.promoted_tokens(store)
        self.test_documents = queries.test_documents(store)
        self._hits = {kind: self._by_feature(kind) for kind in ("current", "next")}
        self._normal: dict[int, str] = {}

    def _by_feature(self, kind: str) -> dict[int, tuple[dict[int, int], dict[int, int]]]:
        found: dict[int, tuple[dict[int, int], dict[int, int]]] = {}
        for feature, token, n_explain, n_test in queries.token_table(self.store, kind):
            explain, test = found.setdefault(feature, ({}, {}))
            explain[token], test[token] = n_explain, n_test
        return found

    def alive(self) -> list[int]:
        """Features that fire strongly somewhere in the explain part: the ones that can be labelled."""
        return [f for f, n_strong, n_test in self.firings if n_test < n_strong]

    def counts(self, feature: int, kind: str) -> tuple[TokenCounts, TokenCounts]:
        """(explain part, test part) of the counts of one feature; kind "current" or "next"."""
        _, n_strong, n_test = self.firings[feature]
        explain, test = self._hits[kind].get(feature, ({}, {}))
        return (
            TokenCounts(explain, self._occurrences["explain"], n_strong - n_test, self._n_tokens["explain"]),
            TokenCounts(test, self._occurrences["test"], n_test, self._n_tokens["test"]),
        )

    def normal(self, token: int) -> str:
        """The token's text without surrounding space and case; spaces and line breaks are named."""
        if token not in self._normal:
            text = self.store.token_bytes.get(token, b"").decode("utf-8", "replace")
            shown = text.strip().lower()
            self._normal[token] = shown or text.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
        return self._normal[token]

    @cached_property
    def random_windows(self) -> list[tuple[bool, str, set[int]]]:
        """(in a test document, text, features that fire) of the stored random windows."""
        return [
            (document in self.test_documents, "".join(self.store.text_of(ids)), fired)
            for document, ids, fired in queries.random_windows(self.store)
        ]

    def windows(self, feature: int) -> tuple[list[Window], list[Window]]:
        """(explain windows, test windows) with a strong peak, of one feature."""
        found = queries.windows(self.store, feature)
        least = STRONG * max((w.acts[w.peak] for w in found), default=0.0)
        strong = [w for w in found if w.acts[w.peak] >= least]
        test = [w for w in strong if w.document in self.test_documents]
        return [w for w in strong if w.document not in self.test_documents], test
