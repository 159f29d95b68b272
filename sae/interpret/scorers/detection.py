"""Detection: does a judge who reads only the text tell windows in which the feature fires from others?"""

from __future__ import annotations

from typing import final

from sae.interpret.judging.judged_scorer import Item, YesNoScorer, held_out_windows
from sae.interpret.judging.prompts import DATA
from sae.interpret.scorer import ScoringCase

SYSTEM = (
    "You are given a description and some texts. Say for each text, in order, whether it contains what is described. "
    'Answer: {"matches": [true or false for each text]}. ' + DATA
)


@final
class Detection(YesNoScorer):
    """Balanced accuracy on held-out windows: activating ones of all strata against hard and random silent ones.

    As delphi's detection (Paulo et al. 2024, arXiv 2410.13928, section 4). Differs from it: windows come from documents
    that the explanation has not seen, unreadable answers are wrong instead of dropped, a last prompt may be shorter.
    The baseline is the feature's model-free label, matched anywhere in the window.
    """

    name = "detection"
    by_default = True
    decides_label = True
    system = SYSTEM

    def items(self, case: ScoringCase) -> list[Item]:
        """Windows without marks."""
        positive, negative = held_out_windows(case)
        return [Item(e, None, True) for e in positive] + [Item(e, None, False) for e in negative]
