"""Explains a feature by the tokens just before its firings."""

from __future__ import annotations

from collections.abc import Hashable
from typing import final

from sae.interpret.events import Event
from sae.interpret.evidence import Evidence
from sae.interpret.explainer import Explainer, Proposal, token_near, token_proposal


@final
class PreviousToken(Explainer):
    """Rule: the feature fires strongly exactly after these tokens, whatever stands there."""

    name = "previous_token"
    order = 2
    margin = 0.02

    def explain(self, evidence: Evidence, feature: int) -> Proposal | None:
        """Up to three token texts, tested on every token of the test documents."""
        return token_proposal(evidence, feature, "previous", "after ")

    def items(self, evidence: Evidence, event: Event) -> frozenset[Hashable]:
        """The preceding token's text."""
        return token_near(evidence, event, -1)
