"""Asks a judge what a feature's strongest windows share, or what the feature makes the model say."""

from __future__ import annotations

from typing import final

from sae.interpret.events import Event
from sae.interpret.evidence import Evidence
from sae.interpret.judging.judge import Prompt
from sae.interpret.judging.judged_explainer import ANSWER, JudgedExplainer
from sae.interpret.judging.prompts import CLOSE, DATA, OPEN, as_data, firing_places, shown

WINDOWS = 12
SYSTEM = (
    "You name what a feature of a language model stands for. You are given windows of text in which it fires, the "
    f"tokens where it fires most between {OPEN} and {CLOSE}; the tokens at the peaks; the tokens after the peaks; and "
    "tokens that the feature makes likelier as the next token. If the marked tokens or their context share something, "
    "it is an input feature: name that. If they do not, but the tokens after the peaks and the likelier tokens do, it "
    "is an output feature: name what it makes the model say. "
    'Answer: {"kind": "input" or "output", "label": at most six words, "sentence": one sentence}. ' + DATA
)


@final
class MaxActivation(JudgedExplainer):
    """Label and one sentence from the strongest explain windows with their logits."""

    name = "max_activation"
    order = 20
    by_default = True

    def prompt(self, evidence: Evidence, feature: int) -> Prompt | None:
        """Windows, peak tokens, following tokens and promoted tokens, as JSON."""
        windows = evidence.windows(feature)[0][:WINDOWS]
        if not windows:
            return None
        return Prompt(SYSTEM, as_data(**lists(evidence, feature, windows)), ANSWER)


def lists(evidence: Evidence, feature: int, windows: list[Event]) -> dict[str, list[str]]:
    """The four lists that the judge is shown."""
    word = evidence.store.vocabulary.shown
    return {
        "windows": [shown(evidence, e, firing_places(e)) for e in windows],
        "peaks": [word(e.ids[e.peak]) for e in windows],
        "after": [word(e.ids[e.peak + 1]) for e in windows if e.peak + 1 < len(e.ids)],
        "likelier": [word(t) for t in evidence.promoted[feature]],
    }
