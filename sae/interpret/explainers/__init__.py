"""Every explainer in this folder, found by looking: one file adds one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from sae.interpret.explainers.base import Explainer, Proposal


def _discover() -> dict[str, Explainer]:
    found: list[Explainer] = []
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, Explainer) and cls.__module__ == module.__name__ and not inspect.isabstract(cls):
                found.append(cls())
    return {e.name: e for e in sorted(found, key=lambda e: (e.order, e.name))}


EXPLAINERS = _discover()

__all__ = ["EXPLAINERS", "Explainer", "Proposal"]
