"""Explains a feature by the tokens that it fires on."""

from __future__ import annotations

from collections.abc import Hashable
from typing import final

from sae.interpret.events import Event
from sae.interpret.evidence import Evidence
from sae.interpret.explainer import Explainer, Proposal, token_near, token_proposal


@final
class Token(Explainer):
    """Rule: the feature fires strongly exactly on these tokens."""

    name = "token"
    is_baseline = True

    def explain(self, evidence: Evidence, feature: int) -> Proposal | None:
        """Up to three token texts, tested on every token of the test documents."""
        return token_proposal(evidence, feature, "current", "token ")

    def items(self, evidence: Evidence, event: Event) -> frozenset[Hashable]:
        """The token's text."""
        return token_near(evidence, event, 0)
