"""TopK: the k largest pre-activations of every token, then ReLU."""

from __future__ import annotations

from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae.architectures.selections import KLargest
from sae.architectures.settings import KeepsK, TrainingPass
from sae.kernels.sparse import gather_dot, gather_sum, pick, selection_for

MULTI = 4
MULTI_WEIGHT = 1 / 8


@final
class TopKConfig(KeepsK):
    """Settings of a TopK dictionary."""

    architecture: Literal["topk"] = Field(default="topk", description="Keep the k largest activations of every token.")
    multi_topk: bool = Field(
        default=False, description="Also train the code of 4k latents (weight 1/8), so that it also works with other k."
    )


@final
class TopK(KLargest[TopKConfig]):
    """TopK sparse autoencoder: `l0` is at most k for every token.

    Paper: Scaling and evaluating sparse autoencoders, Gao et al. 2024, arXiv 2406.04093, equation 3; multi_topk:
    section A.3, L(k) + L(4k) / 8.
    Differs from the paper: by default the input is scaled by one number for the whole data set instead of
    normalised token by token (`token_norm`), so that errors keep the weights they have in the language model.
    """

    config_class = TopKConfig

    @property
    def loss_terms(self) -> Literal["error", "wider"]:
        """The squared error alone, unless `multi_topk` adds a second one."""
        return "wider" if self.config.multi_topk else "error"

    @property
    def k_in_loss(self) -> int:
        """k, or 4k with `multi_topk`."""
        return min(MULTI * self.config.k, self.d_sae) if self.config.multi_topk else self.config.k

    def extra_loss(self, training_pass: TrainingPass) -> Float[Tensor, ""] | None:
        """fvu with 4k latents, times 1/8, if `multi_topk`."""
        if not self.config.multi_topk:
            return None

        x, y = training_pass.batch.x, training_pass.batch.y
        centred = self.centre(x)

        with torch.no_grad():
            pre_acts = self.pre_acts(centred)
            indices = selection_for(pre_acts).top_k_indices(pre_acts, self.k_in_loss)

        values = gather_dot(centred, self.W_enc.T, indices) + pick(self.b_enc, indices)
        error = y - gather_sum(F.relu(values), self.W_dec, indices) - self.b_dec

        return MULTI_WEIGHT * error.square().sum(1).mean() / training_pass.variance
