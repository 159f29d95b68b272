"""top-AFA: a token keeps as many latents as their norm needs to reach the norm of the input."""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from sae.architectures.base import SparseAutoencoder
from sae.architectures.flat_code import CodeLoss, CodeLossByHand, FlatPass
from sae.architectures.settings import ArchitectureConfig, SelectionInput, TrainingPass
from sae.kernels.sparse import selection_for

SAMPLE_ROWS = 64
RUNNING_WEIGHT = 0.02
TINY = 1e-12  # of a squared norm


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
class TopAfa(SparseAutoencoder[TopAfaConfig], CodeLossByHand):
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
    selects = "to_norm"
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

    def _aim(self, x: Tensor) -> Tensor:
        """The norm [tokens] that ||a|| is drawn to."""
        aim = x - self.b_dec.detach() if self.config.afa_norm == "centred" else x
        return aim.float().norm(dim=1)

    def extra_loss(self, training_pass: TrainingPass) -> Float[Tensor, ""]:
        """afa_coefficient * mean (||a|| - norm)^2."""
        squares = training_pass.encoding.top_acts.square().sum(1)
        difference = squares.clamp_min(TINY).sqrt() - self._aim(training_pass.batch.x)
        return self.config.afa_coefficient * self.mean_over_batch(difference.square())

    def code_loss(self, flat_pass: FlatPass) -> CodeLoss:
        """`extra_loss` by hand: dL/dz_i = (g_i + 2 afa_coefficient (||a|| - norm) a_i / (n ||a||)) 1[z_i > 0]."""
        weight, acts = self.config.afa_coefficient, flat_pass.acts
        length = flat_pass.sum_by_token(acts.square()).clamp_min(TINY).sqrt()
        difference = (length - self._aim(flat_pass.batch.x)) * flat_pass.is_counted
        push = 2 * weight * difference / (flat_pass.n_tokens * length)
        grad_acts = flat_pass.grad_acts + push[flat_pass.tokens] * acts
        loss = weight * flat_pass.sum_over_batch(difference.square()) / flat_pass.n_tokens
        return CodeLoss(loss, torch.where(acts > 0, grad_acts, 0.0), {})

    @torch.no_grad()
    def observe(self, training_pass: TrainingPass) -> None:
        """Moves `threshold` towards the one that keeps as many latents of the batch's first rows as k(x) does."""
        rows = min(SAMPLE_ROWS, len(training_pass.x_hat))
        n_kept = training_pass.n_active[:rows].sum().long()
        pre_acts = self.pre_acts(self.centre(training_pass.batch.x[:rows])).flatten()
        if pre_acts.device.type == "cuda":  # a sort: nothing waits for n_kept
            least = pre_acts.sort(descending=True).values[(n_kept - 1).clamp_min(0)[None]][0].float()
        else:
            least = pre_acts.float().topk(max(1, int(n_kept))).values[-1]
        weight = torch.where(self.threshold > 0, RUNNING_WEIGHT, 1.0) * (n_kept > 0)
        self.threshold += weight * (least - self.threshold)
