"""top-AFA: a token keeps as many latents as their norm needs to reach the norm of the input."""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from sae.architectures.base import SparseAutoencoder
from sae.architectures.settings import ArchitectureConfig, SelectionInput, TrainingPass
from sae.kernels.sparse import selection_for

SAMPLE_ROWS = 64
RUNNING_WEIGHT = 0.02


@final
class TopAfaConfig(ArchitectureConfig):
    """Settings of a top-AFA dictionary."""

    architecture: Literal["top_afa"] = Field(
        default="top_afa", description="k(x) per token: the code's norm comes nearest to the input's. No k to choose."
    )
    afa_coefficient: float = Field(default=1 / 32, ge=0, description="Weight of (||a|| - ||x||)^2, lambda_AFA.")
    afa_norm: Literal["centred", "input"] = Field(
        default="centred",
        description="Norm that the loss aims at: of x - b_dec, which the selection uses too; or of x, as in the "
        "authors' code.",
    )


@final
class TopAfa(SparseAutoencoder[TopAfaConfig]):
    """top-AFA sparse autoencoder: k(x) = 1 + argmin_j | sqrt(sum of the j largest a_i^2) - ||x - b_dec|| |.

    Paper: Evaluating and designing sparse autoencoders by approximating quasi-orthogonality, Lee et al. 2025,
    arXiv 2503.24277: ||a|| approximates the norm of what the code stands for (AFA), sections 3 and 5.
    The two readings: the theorem bounds the norm of W a by ||a||, and W a stands for x - b_dec; the released code
    selects by ||x - b_dec|| but its loss aims at ||x||. Aiming at two different norms asks for codes that the
    selection then cuts, so `afa_norm: centred` (one norm) is the default and `input` is the released code's.
    Differs from the paper: b_enc is used (the released code has one and ignores it); its token normalisation
    is `token_norm: true`; the decoder has unit norm after every update, so no decoder norms enter; the AuxK target
    is detached.
    """

    config_class = TopAfaConfig
    ragged = True
    computes_as = "jumprelu"
    foreign_tensors = ("threshold",)
    lost_in_foreign_form = "k(x) of top-AFA became one threshold with the same mean l0"
    extra_loss_terms = "code"
    in_units_of_activation = ("threshold",)
    threshold: Float[Tensor, ""]  # one threshold with the same mean l0, for formats that know no k(x)

    def __init__(self, config: TopAfaConfig, d_in: int, d_out: int, selection_dtype: torch.dtype = torch.float32):
        super().__init__(config, d_in, d_out, selection_dtype)
        self.register_buffer("threshold", torch.zeros(()))

    def select(self, pre_acts: Float[Tensor, "tokens d_sae"], selection: SelectionInput) -> Int[Tensor, "tokens width"]:
        """The k(x) largest pre-activations; all positive ones if their norm stays below the input's."""
        return selection_for(pre_acts).norm_crossing(pre_acts, selection.centred.float().norm(dim=1))

    def extra_loss(self, training_pass: TrainingPass) -> Float[Tensor, ""]:
        """afa_coefficient * mean (||a|| - norm)^2."""
        x = training_pass.batch.x
        aim = x - self.b_dec.detach() if self.config.afa_norm == "centred" else x
        squares = training_pass.encoding.top_acts.square().sum(1)
        difference = squares.clamp_min(1e-12).sqrt() - aim.float().norm(dim=1)
        return self.config.afa_coefficient * difference.square().mean()

    @torch.no_grad()
    def observe(self, training_pass: TrainingPass) -> None:
        """Moves `threshold` towards the one that keeps as many latents of the batch's first rows as k(x) does."""
        rows = min(SAMPLE_ROWS, len(training_pass.x_hat))
        n_kept = int((training_pass.encoding.top_acts[:rows] > 0).sum())
        if n_kept > 0:
            least = self.pre_acts(self.centre(training_pass.batch.x[:rows])).float().flatten().topk(n_kept).values[-1]
            weight = RUNNING_WEIGHT if self.threshold > 0 else 1.0
            self.threshold += weight * (least - self.threshold)
