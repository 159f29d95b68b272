"""Detection: does a judge who reads only the text tell windows in which the feature fires from others?"""

from __future__ import annotations

from typing import final

from sae.interpret.judge import Answer, Prompt
from sae.interpret.prompts import DATA, as_data, schema, shown
from sae.interpret.scorers.base import Case, Scored
from sae.interpret.scorers.judged import (
    JudgedScorer,
    Trial,
    classified,
    flags,
    held_out_windows,
    matches_anywhere,
    shuffled,
)

SYSTEM = (
    "You are given a description and some texts. Say for each text, in order, whether it contains what is described. "
    'Answer: {"matches": [true or false for each text]}. ' + DATA
)


@final
class Detection(JudgedScorer):
    """Balanced accuracy on held-out windows, activating ones of all strata against hard and random silent ones.

    As delphi's detection (Paulo et al. 2024, arXiv 2410.13928, section 4). Differs from it: windows come from documents
    that the explanation was not made from, unreadable answers are wrong instead of dropped, a last prompt may be shorter.
    The baseline is the feature's model-free label, matched anywhere in the window.
    """

    name = "detection"

    def trials(self, case: Case, text: str) -> list[Trial]:
        """Five windows a prompt, in random order."""
        positive, negative = held_out_windows(case)
        items = [(e, True) for e in positive] + [(e, False) for e in negative]
        made = []
        for part in shuffled(case, items) if positive and negative else []:
            data = as_data(description=text, texts=[shown(case.evidence, e) for e, _ in part])
            answer = schema(
                matches={"type": "array", "items": {"type": "boolean"}, "minItems": len(part), "maxItems": len(part)}
            )
            lexical = [matches_anywhere(case, case.label, e) for e, _ in part]
            made.append(Trial(Prompt(SYSTEM, data, answer), [truth for _, truth in part], lexical))
        return made

    def score(self, trials: list[Trial], answers: list[Answer]) -> list[Scored]:
        """balanced_accuracy, chance 0.5."""
        said = [flags(a.value, "matches", len(t.truth)) for t, a in zip(trials, answers, strict=True)]
        return [classified(trials, said)] if trials else []
