"""saedex: train sparse autoencoders on a language model's activations, and look at what the model has learned."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae.api import (
        RunConfig,
        SparseAutoencoder,
        TextActivations,
        contexts,
        features,
        harvest,
        load,
        load_config,
        scores,
        show,
        train,
    )

__all__ = [
    "RunConfig",
    "SparseAutoencoder",
    "TextActivations",
    "contexts",
    "features",
    "harvest",
    "load",
    "load_config",
    "scores",
    "show",
    "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # torch is heavy, and absent if saedex only serves, so `sae.api` is imported at its first use.
    if name in __all__:
        return getattr(import_module("sae.api"), name)
    raise AttributeError(f"module 'sae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
