"""Finds every explainer in this folder; one new file adds an explainer."""

from __future__ import annotations

from typing import TypeVar

from sae.foundation.discovery import instances_in
from sae.interpret.explainer import Explainer, Proposal
from sae.interpret.judging.judged_explainer import JudgedExplainer

E = TypeVar("E", Explainer, JudgedExplainer)


def _named(kind: type[E]) -> dict[str, E]:
    return {e.name: e for e in sorted(instances_in(__name__, kind).values(), key=lambda e: (e.order, e.name))}


EXPLAINERS = _named(Explainer)
JUDGED_EXPLAINERS = _named(JudgedExplainer)

__all__ = ["EXPLAINERS", "JUDGED_EXPLAINERS", "Explainer", "JudgedExplainer", "Proposal"]
