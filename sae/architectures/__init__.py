"""Every architecture in this folder, found by looking: one file adds one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import reduce
from operator import or_
from typing import Annotated, Any

import torch
from pydantic import Field

from sae.architectures.base import ArchitectureConfig, Encoding, SparseAutoencoder


def _discover() -> dict[str, type[SparseAutoencoder]]:
    found = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, SparseAutoencoder) and cls.__module__ == module.__name__ and not inspect.isabstract(cls):
                found[cls.config_class.model_fields["architecture"].default] = cls
    return found


ARCHITECTURES = _discover()
_CONFIGS: Any = reduce(or_, (cls.config_class for cls in ARCHITECTURES.values()))
SaeConfig = Annotated[_CONFIGS, Field(discriminator="architecture")] if len(ARCHITECTURES) > 1 else _CONFIGS


def build(config: ArchitectureConfig, d_model: int, selection_dtype: torch.dtype = torch.float32) -> SparseAutoencoder:
    """An uninitialised module of the architecture that `config` names."""
    tag: str = config.architecture  # pyright: ignore[reportAttributeAccessIssue]
    return ARCHITECTURES[tag](config, d_model, selection_dtype)


__all__ = ["ARCHITECTURES", "ArchitectureConfig", "Encoding", "SaeConfig", "SparseAutoencoder", "build"]
