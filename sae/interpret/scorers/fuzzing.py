"""Fuzzing: does a judge tell windows with the right tokens marked from windows with wrong ones marked?"""

from __future__ import annotations

from typing import final

from sae.interpret.judging.judged_scorer import Item, YesNoScorer, copied_marks, held_out_windows
from sae.interpret.judging.prompts import CLOSE, DATA, OPEN, firing_places
from sae.interpret.scorer import ScoringCase

SYSTEM = (
    f"You are given a description and some texts with tokens marked between {OPEN} and {CLOSE}. Say for each text, in "
    "order, whether the marked tokens are what is described. "
    'Answer: {"matches": [true or false for each text]}. ' + DATA
)


@final
class Fuzzing(YesNoScorer):
    """Balanced accuracy on held-out windows: tokens marked where the feature fires, or anywhere in silent windows.

    Marks in silent windows are copied from activating ones, so their places say nothing. The baseline is the feature's
    model-free label, matched on the marked tokens.
    """

    name = "fuzzing"
    system = SYSTEM

    def items(self, case: ScoringCase) -> list[Item]:
        """Activating windows with marks on the tokens that fire, and silent windows with copied marks."""
        positive, negative = held_out_windows(case)
        marks = [firing_places(e) for e in positive]
        items = [Item(e, m, True) for e, m in zip(positive, marks, strict=True)]
        for number, event in enumerate(negative if positive else []):
            items.append(Item(event, copied_marks(marks[number % len(marks)], event), False))
        return items
