"""Explains a feature by the tokens that hold most of its activation, for features that no rule describes."""

from __future__ import annotations

from collections.abc import Hashable
from typing import final

from sae.interpret.events import Event
from sae.interpret.evidence import Evidence
from sae.interpret.explainer import MAX_STRINGS, Explainer, Proposal, joined, quoted, token_near


@final
class TopTokens(Explainer):
    """Rule: the feature fires strongly exactly on these tokens. It is the label where no other rule describes the
    strongest contexts, and says so.
    """

    name = "top_tokens"
    order = 9
    is_last_resort = True

    def explain(self, evidence: Evidence, feature: int) -> Proposal | None:
        """The three token texts with most of the activation, tested on every token of the test documents."""
        texts = list(dict.fromkeys(map(evidence.normal, evidence.mass_tokens[feature])))[:MAX_STRINGS]
        if not texts:
            return None
        explain, test = evidence.counts(feature, "current")
        tokens = joined(evidence.tokens_by_text, texts)
        return Proposal("no rule fits; most on " + quoted(texts), frozenset(texts), explain.of(tokens), test.of(tokens))

    def items(self, evidence: Evidence, event: Event) -> frozenset[Hashable]:
        """The token's text."""
        return token_near(evidence, event, 0)
