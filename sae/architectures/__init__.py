"""Finds every architecture in this folder; one new file adds an architecture."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated, Any

import torch
from pydantic import Field

from sae.architectures.base import SparseAutoencoder
from sae.architectures.settings import ArchitectureConfig, Batch, Encoding
from sae.foundation.discovery import classes_in

ARCHITECTURES: dict[str, type[SparseAutoencoder]] = {
    cls.config_class.model_fields["architecture"].default: cls
    for cls in classes_in(__name__, SparseAutoencoder)
    if "config_class" in vars(cls)  # else a class that architectures share
}
_CONFIGS: Any = reduce(or_, (cls.config_class for cls in ARCHITECTURES.values()))
SaeConfig = Annotated[_CONFIGS, Field(discriminator="architecture")] if len(ARCHITECTURES) > 1 else _CONFIGS


def build(
    config: ArchitectureConfig, d_in: int, d_out: int | None = None, selection_dtype: torch.dtype = torch.float32
) -> SparseAutoencoder:
    """An uninitialised module of the architecture that `config` names; d_out defaults to d_in."""
    tag: str = config.architecture  # pyright: ignore[reportAttributeAccessIssue]
    return ARCHITECTURES[tag](config, d_in, d_in if d_out is None else d_out, selection_dtype)


__all__ = ["ARCHITECTURES", "ArchitectureConfig", "Batch", "Encoding", "SaeConfig", "SparseAutoencoder", "build"]
