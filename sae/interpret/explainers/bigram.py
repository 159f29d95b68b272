"""Explains a feature by pairs of tokens, the one before and the one that it fires on."""

from __future__ import annotations

from collections.abc import Hashable
from typing import final

from sae.interpret.events import Event
from sae.interpret.evidence import Counts, Evidence
from sae.interpret.explainer import Explainer, Proposal, best_sums, quoted


@final
class Bigram(Explainer):
    """Rule: the feature fires strongly exactly on the second token of these pairs."""

    name = "bigram"
    order = 4
    margin = 0.03

    def explain(self, evidence: Evidence, feature: int) -> Proposal | None:
        """Up to three pairs, tested on every token of the test documents."""
        parts = evidence.strong(feature)
        pairs: dict[str, list[tuple[int, ...]]] = {}
        for first, second, *numbers in evidence.bigrams.of(feature):
            text = self._text(evidence, first, second)
            pairs.setdefault(text, []).append(tuple(numbers))

        def counted(texts: list[str], part: int) -> Counts:
            rows = [row for text in texts for row in pairs[text]]
            return parts[part].counts(sum(r[part] for r in rows), sum(r[2 + part] for r in rows))

        sums = {text: (sum(r[0] for r in rows), sum(r[2] for r in rows)) for text, rows in pairs.items()}
        chosen = best_sums(sums, parts[0])
        if not chosen:
            return None

        pair_texts = ", ".join(
            f"{quoted([text.split(chr(0))[1]])} after {quoted([text.split(chr(0))[0]])}" for text in chosen
        )

        return Proposal(pair_texts, frozenset(chosen), counted(chosen, 0), counted(chosen, 1))

    @staticmethod
    def _text(evidence: Evidence, first: int, second: int) -> str:
        return f"{evidence.normal(first)}\0{evidence.normal(second)}"

    def items(self, evidence: Evidence, event: Event) -> frozenset[Hashable]:
        """The texts of the token before and of the token."""
        if event.peak == 0:
            return frozenset()
        return frozenset({self._text(evidence, event.ids[event.peak - 1], event.ids[event.peak])})
