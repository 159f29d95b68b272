"""Every scorer in this folder, found by looking: one file adds one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TypeVar

from sae.interpret.scorers.base import NULLS, Case, Label, Scored, Scorer
from sae.interpret.scorers.judged import JudgedScorer, Trial

S = TypeVar("S", Scorer, JudgedScorer)


def _discover(kind: type[S]) -> dict[str, S]:
    found: list[S] = []
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, kind) and cls.__module__ == module.__name__ and not inspect.isabstract(cls):
                found.append(cls())
    return {s.name: s for s in sorted(found, key=lambda s: s.name)}


SCORERS = _discover(Scorer)
JUDGED_SCORERS = _discover(JudgedScorer)

__all__ = ["JUDGED_SCORERS", "NULLS", "SCORERS", "Case", "JudgedScorer", "Label", "Scored", "Scorer", "Trial"]
