"""saedex: train sparse autoencoders on a language model's activations, and look at what the model has learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae.architectures.base import SparseAutoencoder

__all__ = ["SparseAutoencoder"]


def __getattr__(name: str) -> Any:
    # torch is heavy and absent where saedex only serves: it is imported when a dictionary is asked for.
    if name == "SparseAutoencoder":
        from sae.architectures.base import SparseAutoencoder

        return SparseAutoencoder
    raise AttributeError(f"module 'sae' has no attribute {name!r}")
