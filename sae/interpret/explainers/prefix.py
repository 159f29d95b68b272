"""Explains a feature by the first letters of the words on which it fires."""

from __future__ import annotations

from collections.abc import Hashable
from typing import final

from sae.interpret.events import Event
from sae.interpret.evidence import Counts, Evidence, prefixes
from sae.interpret.explainer import Explainer, Proposal, best_of, joined, quoted

WORDS = 3


@final
class Prefix(Explainer):
    """Rule: the feature fires strongly exactly on tokens that begin with these letters (three different ones or more)."""

    name = "prefix"
    order = 3
    margin = 0.02

    def explain(self, evidence: Evidence, feature: int) -> Proposal | None:
        """Up to three beginnings, tested on every token of the test documents."""
        explain, test = evidence.counts(feature, "current")
        words: dict[str, set[str]] = {}
        firings: dict[str, int] = {}
        for token, n in explain.hits.items():
            for prefix in prefixes(evidence.normal(token)):
                words.setdefault(prefix, set()).add(evidence.normal(token))
                firings[prefix] = firings.get(prefix, 0) + n

        def counted(texts: list[str]) -> Counts:
            # One beginning holds all tokens of a longer one, and two others share none: so what is left adds up.
            apart = [text for text in texts if not any(text != other and text.startswith(other) for other in texts)]
            return explain.counts(
                sum(firings[text] for text in apart), sum(evidence.occurrences_of_prefix[text] for text in apart)
            )

        known = evidence.tokens_by_prefix
        chosen = best_of((prefix for prefix, found in words.items() if len(found) >= WORDS), counted)
        if not chosen:
            return None

        tokens = joined(known, chosen)
        text = "words beginning with " + quoted(chosen)

        return Proposal(text, frozenset(chosen), explain.of(tokens), test.of(tokens))

    def items(self, evidence: Evidence, event: Event) -> frozenset[Hashable]:
        """The beginnings of the token's text."""
        return frozenset(prefixes(evidence.normal(event.ids[event.peak])))
