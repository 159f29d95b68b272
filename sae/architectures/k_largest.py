"""The selection that several architectures share: the k largest pre-activations of every token."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from sae.architectures.base import SparseAutoencoder
from sae.architectures.settings import KeepsK, Selecting
from sae.kernels.sparse import selection_for

K = TypeVar("K", bound=KeepsK)


class KLargest(SparseAutoencoder[K]):
    """A dictionary that keeps the k largest pre-activations of every token."""

    def select(self, pre_acts: Tensor, given: Selecting) -> Tensor:
        """Indices of the k largest pre-activations."""
        return selection_for(pre_acts).top_k_indices(pre_acts, self.config.k)
