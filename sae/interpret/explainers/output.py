"""Explains a feature by the tokens that its decoder direction promotes in the language model's output."""

from __future__ import annotations

from collections.abc import Hashable
from typing import final

from sae.interpret.events import Event
from sae.interpret.evidence import Evidence
from sae.interpret.explainer import Explainer, Proposal, quoted

SHOWN = 4


@final
class Output(Explainer):
    """Rule: the feature fires strongly exactly before the tokens that it promotes.

    The promoted tokens come from the weights alone (logit lens), so the text is not fitted to any document.
    """

    name = "output"
    order = 5
    margin = 0.02

    def explain(self, evidence: Evidence, feature: int) -> Proposal | None:
        """The strongest promoted tokens, tested on every token of the test documents."""
        tokens = set(evidence.promoted[feature])
        explain, test = evidence.counts(feature, "next")
        texts = list(dict.fromkeys(evidence.normal(t) for t in evidence.promoted[feature]))[:SHOWN]
        return Proposal("promotes " + quoted(texts), frozenset(tokens), explain.of(tokens), test.of(tokens))

    def items(self, evidence: Evidence, event: Event) -> frozenset[Hashable]:
        """The id of the token that follows."""
        place = event.peak + 1
        return frozenset(event.ids[place : place + 1])
