"""TopK: the k largest pre-activations of every token, then ReLU."""

from __future__ import annotations

from typing import Literal, final

from pydantic import Field
from torch import Tensor

from sae.architectures.base import ArchitectureConfig, SparseAutoencoder
from sae.kernels.sparse import kernels_for


@final
class TopKConfig(ArchitectureConfig):
    """Settings of a TopK dictionary."""

    architecture: Literal["topk"] = Field(default="topk", description="Keep the k largest activations of every token.")


@final
class TopK(SparseAutoencoder):
    """TopK sparse autoencoder: `l0` is at most k for every token.

    Paper: Scaling and evaluating sparse autoencoders, Gao et al. 2024, arXiv 2406.04093, equation 3.
    Differs from the paper: the input is scaled by one number for the whole data set instead of normalised token
    by token, so that reconstruction errors keep the weights they have in the language model.
    """

    config_class = TopKConfig

    def select(self, pre_acts: Tensor) -> Tensor:
        """Indices of the k largest pre-activations."""
        return kernels_for(pre_acts, selection=True).top_k_indices(pre_acts, self.config.k)
