"""Gradient SAE: selects latents by their activation and by what their removal would do to the model's loss."""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from sae.architectures.base import SparseAutoencoder
from sae.architectures.settings import KeepsK, SelectionInput
from sae.kernels.sparse import selection_for
from sae.model.hookpoints import Channel


@final
class GradientConfig(KeepsK):
    """Settings of a gradient SAE."""

    architecture: Literal["gradient"] = Field(
        default="gradient", description="TopK of activation times (1 + beta |<d_i, gradient of the loss>|)."
    )
    beta: float = Field(
        default=1.0, ge=0, description="Weight of the gradient, whose mean norm over tokens is 1; 0: TopK."
    )
    coefficient: Literal["gradient", "relp"] = Field(
        default="gradient", description="Gradient of the next-token loss, or its relevance-propagation counterpart."
    )

    @model_validator(mode="after")
    def _no_token_norm(self) -> GradientConfig:
        if self.token_norm:
            raise ValueError("gradient SAEs need token_norm: false; their gradient is that of unnormalised activations")
        return self

    @property
    def gradient(self) -> Channel:
        """The coefficients of the loss at the hook point."""
        return Channel(self.hook, self.coefficient)


@final
class Gradient(SparseAutoencoder[GradientConfig]):
    """Gradient sparse autoencoder: keeps the k largest z_i + beta z_i |<d_i, g>|; the values decoded are the z_i.

    g is the gradient of the next-token cross-entropy with regard to the input, summed over tokens (so that the batch
    size cannot matter) and divided by `gradient_norm`, its mean norm over the training sample (so that beta has a
    scale); callers give the gradient as it is. At inference: `encode(x, gradient)` selects as in training, `encode(x)`
    selects without gradients, as TopK does. beta 0 is TopK, bit for bit.

    Paper: Features that make a difference: leveraging gradients for improved dictionary learning, Olmo et al. 2024,
    arXiv 2411.10397, section 3.
    Differs from the paper: the scale of g is stated (the paper's text leaves it open); AuxK as in TopK;
    `coefficient: relp` takes RelP's coefficients (arXiv 2508.21258) in place of the gradient.
    """

    config_class = GradientConfig
    computes_as = "topk"
    gradient_norm: Float[Tensor, ""]

    def __init__(self, config: GradientConfig, d_in: int, d_out: int, selection_dtype: torch.dtype = torch.float32):
        super().__init__(config, d_in, d_out, selection_dtype)
        self.register_buffer("gradient_norm", torch.ones(()))

    def select(self, pre_acts: Float[Tensor, "tokens d_sae"], selection: SelectionInput) -> Int[Tensor, "tokens k"]:
        """The k largest scores; without a gradient the k largest pre-activations."""
        score, beta = pre_acts, self.config.beta
        if beta > 0 and selection.gradient is not None:
            dtype = pre_acts.dtype
            effect = (selection.gradient / self.gradient_norm).to(dtype) @ self.W_dec.T.to(dtype)
            score = torch.addcmul(pre_acts, pre_acts, effect.abs_(), value=beta)  # two passes over memory, not four
        return selection_for(score).top_k_indices(score, self.config.k)
