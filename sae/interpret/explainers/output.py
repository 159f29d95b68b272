"""Explains a feature by the tokens that its decoder direction promotes in the language model's output."""

from __future__ import annotations

from typing import final

from sae.interpret.evidence import Evidence
from sae.interpret.explainers.base import Explainer, Proposal, quoted

SHOWN = 4


@final
class Output(Explainer):
    """Rule: the feature fires strongly exactly before the tokens that it promotes.

    The promoted tokens come from the weights alone, so the text is not fitted to any document.
    """

    name = "output"
    order = 2
    margin = 0.02

    def explain(self, evidence: Evidence, feature: int) -> Proposal | None:
        """The strongest promoted tokens, scored on every token of the test documents."""
        tokens = evidence.promoted[feature]
        explain, test = evidence.counts(feature, "next")
        texts = list(dict.fromkeys(evidence.normal(t) for t in tokens))[:SHOWN]
        scores = explain.balanced_accuracy(set(tokens)), test.balanced_accuracy(set(tokens))
        return Proposal("promotes " + quoted(texts), *scores, test.n_strong, test.n_tokens - test.n_strong)
