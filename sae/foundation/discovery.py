"""Finds the plug-ins in a folder, so that one new file is all that a plug-in needs."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TypeVar

C = TypeVar("C")


def classes_in(package: str, kind: type[C]) -> dict[type[C], str]:
    """Concrete subclasses of `kind` that the modules of a package define, each with its module's name."""
    classes: dict[type[C], str] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, kind) and cls.__module__ == module.__name__ and not inspect.isabstract(cls):
                classes[cls] = info.name
    return classes


def instances_in(package: str, kind: type[C]) -> dict[str, C]:
    """One instance of each such class, by the name of its module."""
    return {name: cls() for cls, name in classes_in(package, kind).items()}
