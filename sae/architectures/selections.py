"""Selections that several architectures share: the k largest of every token, and the k largest of a batch on average."""

from __future__ import annotations

from typing import Generic, TypeVar, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from sae.architectures.base import SparseAutoencoder
from sae.architectures.settings import KeepsK, SelectionInput, TrainingPass
from sae.foundation.section import Count
from sae.kernels.sparse import selection_for

K = TypeVar("K", bound=KeepsK)


class KLargest(SparseAutoencoder[K]):
    """A dictionary that keeps the k largest pre-activations of every token."""

    selects = "k_per_token"
    computes_as = "topk"

    def select(self, pre_acts: Float[Tensor, "tokens d_sae"], selection: SelectionInput) -> Int[Tensor, "tokens k"]:
        """Indices of the k largest pre-activations."""
        return selection_for(pre_acts).top_k_indices(pre_acts, self.config.k)


class BatchKeepsK(KeepsK):
    """Settings of an architecture that keeps k latents per token on average over a batch."""

    threshold_tokens: Count = Field(
        default=100_000, ge=1, description="Activations over which the inference threshold is averaged."
    )


B = TypeVar("B", bound=BatchKeepsK)


class BatchSelected(SparseAutoencoder[B], Generic[B]):
    """Training: the tokens * k largest activations of the batch. Inference: all activations above `threshold`.

    threshold = running mean of the smallest positive activation of each batch's selection; a batch of n tokens weighs
    1 - exp(-n / threshold_tokens). The first batch sets it.
    """

    ragged = True
    selects = "k_per_batch"
    computes_as = "jumprelu"
    foreign_tensors = ("threshold",)
    in_units_of_activation = ("threshold",)
    threshold: Float[Tensor, ""]

    def __init__(self, config: B, d_in: int, d_out: int, selection_dtype: torch.dtype = torch.float32):
        super().__init__(config, d_in, d_out, selection_dtype)
        self.register_buffer("threshold", torch.zeros(()))

    @final
    def selection_bounds(self) -> Float[Tensor, " d_sae"] | None:
        """The running threshold, outside of training."""
        return None if self.training else self.threshold.expand(self.d_sae)

    @final
    def select(self, pre_acts: Float[Tensor, "tokens d_sae"], selection: SelectionInput) -> Int[Tensor, "tokens width"]:
        """The largest of the batch in training, else those above the threshold."""
        kernels = selection_for(pre_acts)
        if self.training:
            return kernels.batch_top_k(pre_acts, self.config.k)
        return kernels.above(pre_acts, self.threshold)

    @final
    @torch.no_grad()
    def observe(self, training_pass: TrainingPass) -> None:
        """Moves the running threshold towards this batch's smallest positive activation."""
        acts = training_pass.encoding.top_acts
        least = torch.where(acts > 0, acts, torch.inf).min()
        weight = float(1 - torch.exp(torch.tensor(-len(training_pass.x_hat) / self.config.threshold_tokens)))
        moved = torch.where(self.threshold == 0, least, self.threshold + weight * (least - self.threshold))
        self.threshold.copy_(torch.where(torch.isfinite(least), moved, self.threshold))
