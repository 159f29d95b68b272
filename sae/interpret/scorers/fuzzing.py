"""Fuzzing: does a judge tell windows with the right tokens marked from windows with wrong ones marked?"""

from __future__ import annotations

from typing import final

from sae.interpret.events import Event
from sae.interpret.judge import Answer, Prompt
from sae.interpret.prompts import CLOSE, DATA, OPEN, as_data, firing_places, schema, shown
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
    f"You are given a description and some texts with tokens marked between {OPEN} and {CLOSE}. Say for each text, in "
    "order, whether the marked tokens are what is described. "
    'Answer: {"matches": [true or false for each text]}. ' + DATA
)


@final
class Fuzzing(JudgedScorer):
    """Balanced accuracy on held-out windows: tokens marked where the feature fires, or anywhere in silent windows.

    Silent windows get the marks' places of activating ones, so where the marks stand says nothing. The baseline is the
    feature's model-free label, matched on the marked tokens.
    """

    name = "fuzzing"

    def trials(self, case: Case, text: str) -> list[Trial]:
        """Five windows a prompt, in random order."""
        positive, negative = held_out_windows(case)
        marks = [firing_places(e) for e in positive]
        items: list[tuple[Event, set[int], bool]] = [(e, m, True) for e, m in zip(positive, marks, strict=True)]
        for number, event in enumerate(negative if positive else []):
            copied = {p for p in marks[number % len(marks)] if p < len(event.ids)}
            items.append((event, copied or {len(event.ids) - 1}, False))
        made = []
        for part in shuffled(case, items) if positive and negative else []:
            data = as_data(description=text, texts=[shown(case.evidence, e, m) for e, m, _ in part])
            answer = schema(
                matches={"type": "array", "items": {"type": "boolean"}, "minItems": len(part), "maxItems": len(part)}
            )
            lexical = [matches_anywhere(case, case.label, e, m) for e, m, _ in part]
            made.append(Trial(Prompt(SYSTEM, data, answer), [truth for *_, truth in part], lexical))
        return made

    def score(self, trials: list[Trial], answers: list[Answer]) -> list[Scored]:
        """balanced_accuracy, chance 0.5."""
        said = [flags(a.value, "matches", len(t.truth)) for t, a in zip(trials, answers, strict=True)]
        return [classified(trials, said)] if trials else []
