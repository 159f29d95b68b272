"""The selection that several architectures share: the k largest pre-activations of every token."""

from __future__ import annotations

from typing import TypeVar

from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures.base import SparseAutoencoder
from sae.architectures.settings import KeepsK, SelectionInput
from sae.kernels.sparse import selection_for

K = TypeVar("K", bound=KeepsK)


class KLargest(SparseAutoencoder[K]):
    """A dictionary that keeps the k largest pre-activations of every token."""

    selects = "k_per_token"
    computes_as = "topk"

    def select(self, pre_acts: Float[Tensor, "tokens d_sae"], selection: SelectionInput) -> Int[Tensor, "tokens k"]:
        """Indices of the k largest pre-activations."""
        return selection_for(pre_acts).top_k_indices(pre_acts, self.config.k)
