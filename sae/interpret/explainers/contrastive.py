"""Asks a judge what a feature's windows share that the windows of its nearest features do not."""

from __future__ import annotations

from typing import final

from sae.interpret.evidence import Evidence
from sae.interpret.judging.judge import Prompt
from sae.interpret.judging.judged_explainer import ANSWER, JudgedExplainer
from sae.interpret.judging.prompts import CLOSE, DATA, OPEN, as_data, firing_places, shown

WINDOWS, OTHERS = 12, 6
SYSTEM = (
    "You name what a feature of a language model stands for. You are given windows of text in which it fires, the "
    f"tokens where it fires most between {OPEN} and {CLOSE}, and similar windows in which it does not fire. Name what "
    "the first have and the second lack. "
    'Answer: {"kind": "input", "label": at most six words, "sentence": one sentence}. ' + DATA
)


@final
class Contrastive(JudgedExplainer):
    """Label and one sentence from strong windows against hard negatives, both of the explain documents."""

    name = "contrastive"
    order = 21

    def prompt(self, evidence: Evidence, feature: int) -> Prompt | None:
        """Windows with and without the feature, as JSON."""
        windows = evidence.windows(feature)[0][:WINDOWS]
        events = evidence.events
        others = [e for e in events.hard_negatives(feature) if not e.is_test][:OTHERS]
        if not windows or not others:
            return None
        data = as_data(
            fires=[shown(evidence, e, firing_places(e)) for e in windows], silent=[shown(evidence, e) for e in others]
        )
        return Prompt(SYSTEM, data, ANSWER)
