"""Asks a judge what the tokens on which a feature fires have in common, without their contexts."""

from __future__ import annotations

from typing import final

from sae.interpret.evidence import Evidence
from sae.interpret.judging.judge import Prompt
from sae.interpret.judging.judged_explainer import ANSWER, JudgedExplainer
from sae.interpret.judging.prompts import DATA, as_data

TOKENS = 20
SYSTEM = (
    "You name what a feature of a language model stands for. You are given the tokens on which it fires most often "
    "and how often. Name what they share. "
    'Answer: {"kind": "input", "label": at most six words, "sentence": one sentence}. ' + DATA
)


@final
class SingleToken(JudgedExplainer):
    """Label and one sentence from the tokens of the explain documents alone."""

    name = "single_token"
    order = 22

    def prompt(self, evidence: Evidence, feature: int) -> Prompt | None:
        """Tokens and counts, as JSON."""
        hits = evidence.counts(feature, "current")[0].hits
        most = sorted((n, t) for t, n in hits.items() if n)[::-1][:TOKENS]
        if not most:
            return None
        return Prompt(SYSTEM, as_data(tokens=[[evidence.store.vocabulary.shown(t), n] for n, t in most]), ANSWER)
