"""Finds every scorer in this folder; one new file adds a scorer."""

from __future__ import annotations

from typing import TypeVar

from sae.foundation.discovery import instances_in
from sae.interpret.judging.judged_scorer import JudgedScorer, Trial
from sae.interpret.scorer import N_NULL_LABELS, Figure, Label, Scorer, ScoringCase

S = TypeVar("S", Scorer, JudgedScorer)


def _named(kind: type[S]) -> dict[str, S]:
    return {s.name: s for s in sorted(instances_in(__name__, kind).values(), key=lambda s: s.name)}


SCORERS = _named(Scorer)
JUDGED_SCORERS = _named(JudgedScorer)

__all__ = [
    "JUDGED_SCORERS",
    "N_NULL_LABELS",
    "SCORERS",
    "Figure",
    "JudgedScorer",
    "Label",
    "Scorer",
    "ScoringCase",
    "Trial",
]
