"""Matryoshka BatchTopK: every prefix of the dictionary must reconstruct by itself, so early latents stay general."""

from __future__ import annotations

from itertools import accumulate
from typing import Literal, final

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sae.architectures.selections import BatchKeepsK, BatchSelected
from sae.architectures.settings import TrainingPass
from sae.kernels.sparse import gather_sum


@final
class MatryoshkaConfig(BatchKeepsK):
    """Settings of a Matryoshka dictionary."""

    architecture: Literal["matryoshka"] = Field(
        default="matryoshka", description="BatchTopK whose prefixes are dictionaries too."
    )
    groups: tuple[float, ...] = Field(
        default=(1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2 + 1 / 32),
        min_length=2,
        description="Shares of d_sae, first to last; they sum to 1.",
    )

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Sizes of the nested dictionaries, ascending; the last is d_sae."""
        ends = [round(end * self.d_sae) for end in accumulate(self.groups)]
        return (*ends[:-1], self.d_sae)

    @model_validator(mode="after")
    def _groups_fit(self) -> MatryoshkaConfig:
        if abs(sum(self.groups) - 1) > 1e-6 or any(share <= 0 for share in self.groups):
            raise ValueError(f"groups sum to {sum(self.groups):g}, they must be positive and sum to 1")
        if len(set(self.prefixes)) < len(self.prefixes) or self.prefixes[0] == 0:
            raise ValueError(f"groups give nested sizes {self.prefixes}: one holds no latent; use a larger d_sae")
        return self


@final
class Matryoshka(BatchSelected[MatryoshkaConfig]):
    """Matryoshka sparse autoencoder: loss = sum over prefixes m of ||y - b_dec - sum_{i < m} a_i d_i||^2 / variance.

    Paper: Learning multi-level features with Matryoshka sparse autoencoders, Bussmann et al. 2025,
    arXiv 2503.17547, equation 4.
    Differs from the paper: prefixes are fixed shares instead of sampled sizes, as in its released code.
    """

    config_class = MatryoshkaConfig
    extra_loss_terms = "prefixes"

    def extra_loss(self, training_pass: TrainingPass) -> Float[Tensor, ""]:
        """The same loss for all prefixes but the last, which is the whole dictionary."""
        acts, indices = training_pass.encoding.top_acts, training_pass.encoding.top_indices
        total = acts.new_zeros(())
        for end in self.config.prefixes[:-1]:
            inside = torch.where(indices < end, acts, 0.0)
            error = training_pass.batch.y - gather_sum(inside, self.W_dec, indices) - self.b_dec
            total = total + error.square().sum(1).mean() / training_pass.variance
        return total
