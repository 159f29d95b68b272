"""Every explainer in this folder, found by looking: one file adds one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TypeVar

from sae.interpret.explainers.base import Explainer, Proposal
from sae.interpret.explainers.judged import JudgedExplainer

E = TypeVar("E", Explainer, JudgedExplainer)


def _discover(kind: type[E]) -> dict[str, E]:
    found: list[E] = []
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, kind) and cls.__module__ == module.__name__ and not inspect.isabstract(cls):
                found.append(cls())
    return {e.name: e for e in sorted(found, key=lambda e: (e.order, e.name))}


EXPLAINERS = _discover(Explainer)
JUDGED_EXPLAINERS = _discover(JudgedExplainer)

__all__ = ["EXPLAINERS", "JUDGED_EXPLAINERS", "Explainer", "JudgedExplainer", "Proposal"]
