"""ReLU with an L1 penalty: the first sparse autoencoder, kept as the baseline."""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from sae.architectures.base import SparseAutoencoder
from sae.architectures.flat_code import CodeLoss, CodeLossByHand, FlatPass
from sae.architectures.settings import Penalised, SelectionInput, TrainingPass
from sae.kernels.sparse import selection_for


@final
class ReluConfig(Penalised):
    """Settings of a ReLU dictionary."""

    architecture: Literal["relu"] = Field(default="relu", description="All positive activations, with an L1 penalty.")
    l1_coefficient: float = Field(
        default=1e-2, ge=0, description="Weight of mean sum_i a_i, of inputs scaled to a median norm of sqrt(d_model)."
    )


@final
class Relu(SparseAutoencoder[ReluConfig], CodeLossByHand):
    """ReLU sparse autoencoder: a = ReLU(pre-activations), loss + l1_coefficient * mean_x sum_i a_i.

    Paper: Sparse autoencoders find highly interpretable features in language models, Cunningham et al. 2023,
    arXiv 2309.08600, equation 4; unit decoder rows as in Towards Monosemanticity (Bricken et al. 2023).
    Differs from the paper: dead latents are revived by AuxK instead of resampling.
    """

    config_class = ReluConfig
    ragged = True
    selects = "above_bounds"
    extra_loss_terms = "code"
    computes_as = "relu"

    def selection_bounds(self) -> Float[Tensor, " d_sae"]:
        """Zero."""
        return torch.zeros_like(self.b_enc)

    def select(self, pre_acts: Float[Tensor, "tokens d_sae"], selection: SelectionInput) -> Int[Tensor, "tokens width"]:
        """Every latent above zero."""
        return selection_for(pre_acts).above(pre_acts, 0.0)

    def extra_loss(self, training_pass: TrainingPass) -> Float[Tensor, ""]:
        """The penalty, at the weight to which it has risen."""
        return (
            self.config.l1_coefficient
            * self.config.risen(training_pass.tokens_seen)
            * self.mean_over_batch(training_pass.encoding.top_acts.sum(1))
        )

    def code_loss(self, flat_pass: FlatPass) -> CodeLoss:
        """The penalty by hand: dL/dz = (g + c / n) 1[z > 0] with g the gradient of the activation, c the penalty's weight."""
        acts, n_tokens = flat_pass.acts, flat_pass.n_tokens
        weight = self.config.l1_coefficient * self.config.risen_on_device(flat_pass.tokens_seen) / n_tokens
        grad_values = torch.where(acts > 0, flat_pass.grad_acts + weight, 0.0)
        return CodeLoss(weight * flat_pass.sum_over_batch(flat_pass.sum_by_token(acts)), grad_values, {})
