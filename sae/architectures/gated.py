"""Gated: one path decides which latents fire and another how strongly, so that the penalty does not shrink activations."""

from __future__ import annotations

from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from sae.architectures.base import SparseAutoencoder
from sae.architectures.flat_code import CodeLoss, CodeLossByHand, FlatPass
from sae.architectures.settings import Penalised, SelectionInput, TrainingPass
from sae.kernels.sparse import gather_sum, pick, selection_for


@final
class GatedConfig(Penalised):
    """Settings of a Gated dictionary."""

    architecture: Literal["gated"] = Field(
        default="gated", description="A gate and a magnitude per latent, sharing encoder directions."
    )
    l1_coefficient: float = Field(
        default=1e-2, ge=0, description="Weight of the gate's L1, of inputs scaled to a median norm of sqrt(d_model)."
    )


@final
class Gated(SparseAutoencoder[GatedConfig], CodeLossByHand):
    """Gated sparse autoencoder: a = 1[g > 0] ReLU(exp(r_mag) (g - b_enc) + b_mag), g = (x - b_dec) W_enc + b_enc.

    loss + l1_coefficient * sum ReLU(g) + ||y - y_hat(ReLU(g))||^2 / variance, the last with a frozen decoder.
    b_enc is the paper's b_gate.

    Paper: Improving dictionary learning with gated sparse autoencoders, Rajamanoharan et al. 2024,
    arXiv 2404.16014, equations 6 to 8.
    Differs from the paper: dead latents are revived by AuxK instead of resampling.
    """

    config_class = GatedConfig
    ragged = True
    selects = "above_bounds"
    extra_loss_terms = "code"
    silent_pairs_have_gradients = True  # those of the gate
    computes_as = "gated"
    foreign_tensors = ("r_mag", "b_mag")
    in_units_of_activation = ("b_mag",)

    def __init__(self, config: GatedConfig, d_in: int, d_out: int, selection_dtype: torch.dtype = torch.float32):
        super().__init__(config, d_in, d_out, selection_dtype)
        self.r_mag = nn.Parameter(torch.zeros(config.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(config.d_sae))

    def selection_bounds(self) -> Float[Tensor, " d_sae"]:
        """Zero, for the gate's pre-activations."""
        return torch.zeros_like(self.b_enc)

    def select(self, pre_acts: Float[Tensor, "tokens d_sae"], selection: SelectionInput) -> Int[Tensor, "tokens width"]:
        """Every latent whose gate is open."""
        return selection_for(pre_acts).above(pre_acts, 0.0)

    def activate(
        self, values: Float[Tensor, "tokens width"], indices: Int[Tensor, "tokens width"]
    ) -> Float[Tensor, "tokens width"]:
        """The magnitudes of open gates."""
        magnitude = pick(self.r_mag, indices).exp() * (values - pick(self.b_enc, indices)) + pick(self.b_mag, indices)
        return F.relu(magnitude) * (values > 0)

    def extra_loss(self, training_pass: TrainingPass) -> Float[Tensor, ""]:
        """The gate's penalty and its own reconstruction."""
        gate = F.relu(training_pass.values)
        y_hat = gather_sum(gate, self.W_dec.detach(), training_pass.encoding.top_indices) + self.b_dec.detach()
        reconstruction = self.mean_over_batch((training_pass.batch.y - y_hat).square().sum(1)) / training_pass.variance
        weight = self.config.l1_coefficient * self.config.risen(training_pass.tokens_seen)
        return weight * self.mean_over_batch(gate.sum(1)) + reconstruction

    def code_loss(self, flat_pass: FlatPass) -> CodeLoss:
        """Penalty and own reconstruction of the gate by hand, and what magnitudes give: with g the gradient of an
        activation, c the penalty's weight and h the gradient of the gate's own error,

        dL/dz = 1[z > 0] (h + c / n) + m, m = g exp(r_mag) 1[a > 0]; dL/dr_mag = m (z - b_enc), dL/db_mag = g 1[a > 0], and
        -m for b_enc, which magnitudes do not have.
        """
        z, n_tokens = flat_pass.values, flat_pass.n_tokens
        is_open = z > 0
        gate = torch.where(is_open, z, 0.0)
        error = flat_pass.decoded(gate)
        weight = self.config.l1_coefficient * self.config.risen_on_device(flat_pass.tokens_seen) / n_tokens

        g = torch.where(flat_pass.acts > 0, flat_pass.grad_acts, 0.0)
        stretch = self.r_mag.detach().exp()[flat_pass.latents]
        m = g * stretch
        sums = {
            "r_mag": m * (z - self.b_enc.detach()[flat_pass.latents]),
            "b_mag": g,
            "b_enc": -m,
        }

        return CodeLoss(
            weight * flat_pass.sum_over_batch(flat_pass.sum_by_token(gate)) + error.loss,
            torch.where(is_open, error.grad_acts + weight, 0.0) + m,
            {name: flat_pass.sum_by_latent(numbers) for name, numbers in sums.items()},
        )
