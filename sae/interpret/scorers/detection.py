"""Detection: does a judge who reads only the text tell windows in which the feature fires from others?"""

from __future__ import annotations

from typing import final

from sae.interpret.prompts import DATA
from sae.interpret.scorers.base import Case
from sae.interpret.scorers.judged import Item, YesNoScorer, held_out_windows

SYSTEM = (
    "You are given a description and some texts. Say for each text, in order, whether it contains what is described. "
    'Answer: {"matches": [true or false for each text]}. ' + DATA
)


@final
class Detection(YesNoScorer):
    """Balanced accuracy on held-out windows, activating ones of all strata against hard and random silent ones.

    As delphi's detection (Paulo et al. 2024, arXiv 2410.13928, section 4). Differs from it: windows come from documents
    that the explanation was not made from, unreadable answers are wrong instead of dropped, a last prompt may be shorter.
    The baseline is the feature's model-free label, matched anywhere in the window.
    """

    name = "detection"
    system = SYSTEM

    def items(self, case: Case) -> list[Item]:
        """Windows without marks."""
        positive, negative = held_out_windows(case)
        return [Item(e, None, True) for e in positive] + [Item(e, None, False) for e in negative]
