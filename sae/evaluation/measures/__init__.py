"""Every measure in this folder, found by looking: one file adds one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from sae.evaluation.measure import Measure


def _discover() -> dict[str, Measure]:
    found = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, Measure) and cls.__module__ == module.__name__:
                found[module_info.name] = cls()
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


MEASURES = _discover()
