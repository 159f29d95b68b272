"""Takes what people said of a feature as explanations; the words that they put in quotation marks are its rule."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import final

from sae.interpret.events import Event
from sae.interpret.evidence import Evidence
from sae.interpret.explainer import Explainer, Proposal, joined, token_near

QUOTED = re.compile(r"[“\"”„]([^“\"”„]+)[“\"”]")


@final
class Human(Explainer):
    """Rule: the feature fires strongly exactly on the tokens that the text quotes, as in: capitals, such as “Paris”.

    A text that quotes no token of the indexed text has no rule, and only a judge can test it.
    """

    name = "human"
    order = 10

    def explain(self, evidence: Evidence, feature: int) -> Proposal | None:
        """The first text of people that has a rule."""
        return next(iter(self.proposals(evidence, feature)), None)

    def proposals(self, evidence: Evidence, feature: int) -> list[Proposal]:
        """Every text of people that has a rule, tested on every token of the test documents."""
        explain, test = evidence.counts(feature, "current")
        proposals = []
        for text in evidence.said.get(feature, ()):
            quoted = quoted_tokens(evidence, text)
            if quoted:
                tokens = joined(evidence.tokens_by_text, quoted)
                proposals.append(Proposal(text, frozenset(quoted), explain.of(tokens), test.of(tokens)))
        return proposals

    def items(self, evidence: Evidence, event: Event) -> frozenset[Hashable]:
        """The token's text."""
        return token_near(evidence, event, 0)


def quoted_tokens(evidence: Evidence, text: str) -> list[str]:
    """The tokens that a text quotes, whatever their case, as far as the indexed text has them."""
    words = (word.strip().lower() for word in QUOTED.findall(text))
    return [word for word in dict.fromkeys(words) if word in evidence.tokens_by_text]
