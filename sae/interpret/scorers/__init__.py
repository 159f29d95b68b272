"""Every scorer in this folder, found by looking: one file adds one."""

from __future__ import annotations

from typing import TypeVar

from sae.foundation.discovery import instances_in
from sae.interpret.scorers.base import NULLS, Case, Label, Scored, Scorer
from sae.interpret.scorers.judged import JudgedScorer, Trial

S = TypeVar("S", Scorer, JudgedScorer)


def _named(kind: type[S]) -> dict[str, S]:
    return {s.name: s for s in sorted(instances_in(__name__, kind).values(), key=lambda s: s.name)}


SCORERS = _named(Scorer)
JUDGED_SCORERS = _named(JudgedScorer)

__all__ = ["JUDGED_SCORERS", "NULLS", "SCORERS", "Case", "JudgedScorer", "Label", "Scored", "Scorer", "Trial"]
