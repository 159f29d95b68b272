"""Explains a feature by the tokens of its strongest contexts and those that hold most of its activation.

It is for features that no rule describes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import final

from sae.interpret.events import Event
from sae.interpret.evidence import Evidence
from sae.interpret.explainer import Explainer, Proposal, joined, quoted, token_near

MOST = 2  # texts of each of the two sorts


@final
class TopTokens(Explainer):
    """Rule: the feature fires strongly exactly on these tokens. It is the label where no other rule describes the
    strongest contexts, and says so.
    """

    name = "top_tokens"
    order = 9
    is_last_resort = True

    def explain(self, evidence: Evidence, feature: int) -> Proposal | None:
        """Two token texts under the strongest peaks, and two others with most of the activation."""
        peaks = Counter(str(text) for event in evidence.strongest(feature) for text in token_near(evidence, event, 0))
        strongest = [text for text, _ in peaks.most_common(MOST)]
        by_mass = dict.fromkeys(map(evidence.normal, evidence.mass_tokens[feature]))
        most = [text for text in by_mass if text not in strongest][:MOST]
        if not most and not strongest:
            return None

        said = [f"{how} on {quoted(texts)}" for how, texts in (("strongest", strongest), ("most", most)) if texts]
        explain, test = evidence.counts(feature, "current")
        tokens = joined(evidence.tokens_by_text, [*strongest, *most])
        return Proposal(
            "; ".join(["no rule fits", *said]), frozenset([*strongest, *most]), explain.of(tokens), test.of(tokens)
        )

    def items(self, evidence: Evidence, event: Event) -> frozenset[Hashable]:
        """The token's text."""
        return token_near(evidence, event, 0)
