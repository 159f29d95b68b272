"""What explainers may look at, read once from a context generation and split by document into explain and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from feature_store import evidence_queries
from feature_store.indexing.formats import normal_text
from feature_store.indexing.tables import STRONG
from feature_store.store import Store
from sae.interpret.events import Event, Events

SPLIT_ID = "similar-documents-half-v2"
STRONGEST = 10  # windows that a label must speak of
PREFIX_LENGTHS = range(2, 7)


class Counts(NamedTuple):
    """How a rule does: it matches `hits` of `n_pos` positives and `false` of `n_neg` negatives.

    `prevalence` is the share of all tokens that are positive, if the counts themselves do not show it.
    """

    hits: int
    n_pos: int
    false: int
    n_neg: int
    prevalence: float | None = None

    @property
    def balanced_accuracy(self) -> float:
        """(hits / n_pos + 1 - false / n_neg) / 2, chance 0.5; NaN without both classes."""
        if self.n_pos == 0 or self.n_neg == 0:
            return float("nan")
        return (self.hits / self.n_pos + 1 - self.false / self.n_neg) / 2

    @property
    def positive_share(self) -> float:
        """Share of all tokens that are positive: the precision of a rule that matches everything."""
        if self.prevalence is not None:
            return self.prevalence
        return self.n_pos / max(self.n_pos + self.n_neg, 1)

    @property
    def precision(self) -> float:
        """Share of the tokens matched by the rule on which the feature fires strongly, at the tokens' own prevalence.

        Half a false alarm is added, so that a rule tried on few negatives does not look perfect.
        """
        if self.n_pos == 0 or self.n_neg == 0:
            return float("nan")
        true = self.hits / self.n_pos * self.positive_share
        return true / (true + (self.false + 0.5) / (self.n_neg + 1) * (1 - self.positive_share))

    @property
    def f2(self) -> float:
        """5 precision recall / (4 precision + recall): van Rijsbergen's F with recall weighing twice as much.

        Labels are chosen by it: balanced accuracy forgives a rare feature any number of false alarms, F1 chooses rules
        that miss most firings (LOG.md has the figures of all three).
        """
        if self.n_pos == 0 or self.n_neg == 0:
            return float("nan")
        recall, precision = self.hits / self.n_pos, self.precision
        return 5 * precision * recall / (4 * precision + recall) if recall > 0 else 0.0


@dataclass(frozen=True)
class Strong:
    """One part's tokens: on how many a feature fires strongly, and how many there are."""

    n_strong: int
    n_tokens: int

    def counts(self, hits: int, occurrences: int) -> Counts:
        """Counts of a rule that matches `occurrences` tokens, `hits` of them strong firings.

        The store counts a feature's most frequent tokens alone, so `hits` may leave some out. What is matched beyond all silent
        tokens must be a hit.
        """
        n_silent = self.n_tokens - self.n_strong
        hits = max(hits, occurrences - n_silent)
        return Counts(hits, self.n_strong, max(occurrences - hits, 0), n_silent)


@dataclass(frozen=True)
class TokenCounts(Strong):
    """Strong firings on (after, before) every token, and how often the token occurs, in one part."""

    hits: dict[int, int]
    occurrences: Int[np.ndarray, " vocabulary"]

    def of(self, tokens: set[int]) -> Counts:
        """Counts of the rule "fires strongly exactly on these tokens"."""
        return self.counts(*self.sums(tokens))

    def sums(self, tokens: set[int]) -> tuple[int, int]:
        """(strong firings, occurrences) of these tokens together."""
        return sum(self.hits.get(t, 0) for t in tokens), sum(int(self.occurrences[t]) for t in tokens)


class Evidence:
    """Counts, windows and logits of every feature of one store, and what people said of them."""

    def __init__(self, store: Store, said: dict[int, list[str]] | None = None):
        self.store, self.said = store, said or {}
        self.events = Events(store)
        self.firings = evidence_queries.firing_counts(store)
        counts = np.array(evidence_queries.token_counts(store))
        self._occurrences = (counts[:, 1], counts[:, 2])
        n_test = store.meta["tokens_test"]
        self._n_tokens = (store.meta["tokens_all"] - n_test, n_test)
        self.promoted = evidence_queries.promoted_tokens(store)
        self.positions, self.formats = evidence_queries.counted_places(store)
        self.words_around = evidence_queries.words_around(store)
        self.mass_tokens = evidence_queries.activation_mass(store)
        self.bigrams = evidence_queries.bigrams(store)

        self._hits = {kind: evidence_queries.token_firings(store, kind) for kind in ("current", "next", "previous")}
        self._normal: dict[int, str] = {}
        self.tokens_by_text, self.tokens_by_prefix = self._tokens_by()
        self.occurrences_of_text, self.occurrences_of_prefix = (
            {text: int(self._occurrences[0][list(tokens)].sum()) for text, tokens in groups.items()}
            for groups in (self.tokens_by_text, self.tokens_by_prefix)
        )  # in explain documents

    def _tokens_by(self) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
        texts: dict[str, set[int]] = {}
        beginnings: dict[str, set[int]] = {}
        for token in self.store.vocabulary.tokens:
            if self._occurrences[0][token] or self._occurrences[1][token]:
                texts.setdefault(self.normal(token), set()).add(token)
                for prefix in prefixes(self.normal(token)):
                    beginnings.setdefault(prefix, set()).add(token)
        return texts, beginnings

    def n_alive(self) -> int:
        """Features that fire anywhere."""
        return len(self.alive())

    def alive(self) -> list[int]:
        """The features that fire anywhere."""
        return [f for f, n_strong, _, _ in self.firings if n_strong > 0]

    def to_label(self) -> list[int]:
        """Features that fire strongly somewhere in the explain part: the ones that can be labelled."""
        return [f for f, n_strong, n_test, _ in self.firings if n_test < n_strong]

    def strong(self, feature: int) -> tuple[Strong, Strong]:
        """(explain part, test part): how often the feature fires strongly."""
        _, n_strong, n_test, _ = self.firings[feature]
        return Strong(n_strong - n_test, self._n_tokens[0]), Strong(n_test, self._n_tokens[1])

    def n_documents_fired(self, feature: int) -> int:
        """Documents of the test part in which the feature fires strongly."""
        return self.firings[feature].n_documents_test

    def counts(self, feature: int, kind: str) -> tuple[TokenCounts, TokenCounts]:
        """(explain part, test part) of the token counts of one feature; kind "current", "next" or "previous"."""
        hits = self._hits[kind].of(feature)
        explain, test = (
            TokenCounts(part.n_strong, part.n_tokens, hits[i], self._occurrences[i])
            for i, part in enumerate(self.strong(feature))
        )
        return explain, test

    def normal(self, token: int) -> str:
        """The token's text without surrounding space and case; spaces and line breaks are named."""
        if token not in self._normal:
            self._normal[token] = normal_text(self.store.vocabulary.tokens.get(token, b""))
        return self._normal[token]

    def strongest(self, feature: int) -> list[Event]:
        """The strongest windows of the explain part, as a reader of the feature's page sees them."""
        top = [e for e in self.events.activating(feature) if e.group == "top" and not e.is_test]
        return top[:STRONGEST]

    def windows(self, feature: int) -> tuple[list[Event], list[Event]]:
        """(explain windows, test windows) with a strong peak, of one feature."""
        windows = self.events.activating(feature)
        least = STRONG * max((e.act for e in windows), default=0.0)
        strong = [e for e in windows if e.act >= least]
        test = [e for e in strong if e.is_test]
        return [e for e in strong if not e.is_test], test


def prefixes(text: str) -> list[str]:
    """Beginnings of a word, 2 to 6 letters long."""
    return [text[:n] for n in PREFIX_LENGTHS if len(text) >= n and text[:n].isalpha()]
