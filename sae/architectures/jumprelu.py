"""JumpReLU: a learned threshold per latent, trained with straight-through estimates to a target l0."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae.architectures.base import SparseAutoencoder
from sae.architectures.flat_code import CodeLoss, CodeLossByHand, FlatPass
from sae.architectures.settings import Penalised, SelectionInput, SeveralHooks, TrainingPass
from sae.foundation.section import Count
from sae.kernels.sparse import pick, selection_for
from sae.model.hookpoints import HookPoint, HookPointField

LEAST = 1e-3
FIRST_SHARE = 0.1  # of target_l0 that fires at the first threshold
SAMPLE, FEWEST_ROWS = 1 << 26, 64  # pre-activations that the first threshold is a quantile of
REVIVAL = 0.01  # by which the threshold of a dead latent falls an update


@final
class JumpReluConfig(Penalised, SeveralHooks):
    """Settings of a JumpReLU dictionary."""

    architecture: Literal["jumprelu"] = Field(
        default="jumprelu", description="Activations above a threshold of their own, driven to a target l0."
    )
    target_l0: float = Field(default=32.0, gt=0, description="Mean number of latents per token that training aims at.")
    l0_coefficient: float = Field(default=1.0, ge=0, description="Weight of (l0 / target_l0 - 1)^2.")
    bandwidth: float = Field(
        default=1.0, gt=0, description="Width of the interval around a threshold that gives the threshold a gradient."
    )
    initial_threshold: float | None = Field(
        default=None,
        gt=0,
        description="First value of every threshold; none: a tenth of target_l0 latents fire at it on the training text.",
    )

    dead_after_tokens: Count = Field(
        default=300_000,
        ge=1,
        description="A latent that is silent for this many tokens is dead: its threshold falls until it fires again.",
    )

    target: HookPointField | None = Field(
        default=None,
        description="Hook point to reconstruct instead of `hook`: a transcoder, such as mlp_out.8 from mlp_in.8.",
    )
    skip: bool = Field(
        default=False, description="With a target: add a linear map from input to output beside the code."
    )

    @property
    def writes(self) -> tuple[HookPoint, ...]:
        """The target if there is one, else all that is read."""
        return self.reads if self.target is None else (self.target,)

    @model_validator(mode="after")
    def _skip_has_a_target(self) -> JumpReluConfig:
        if self.target == self.hook:
            raise ValueError(f"target is the hook itself ({self.hook}); leave it out")
        if self.target is not None and self.more_hooks:
            raise ValueError("target is for a transcoder and more_hooks for a crosscoder; give one of them")
        if self.skip and self.target is None:
            raise ValueError("skip is for a transcoder: give its target too")
        if self.token_norm and self.target is not None:
            raise ValueError("token_norm is for dictionaries that read and write one hook point")
        return self

    @model_validator(mode="after")
    def _target_fits(self) -> JumpReluConfig:
        if self.target_l0 > self.d_sae:
            raise ValueError(f"target_l0 is {self.target_l0:g}, allowed is up to d_sae ({self.d_sae})")
        return self

    @property
    def expected_l0(self) -> int:
        """The target."""
        return int(self.target_l0) or 1


class _Jump(torch.autograd.Function):
    """z 1[z > t]; d/dz = 1[z > t], d/dt = -(t / width) 1[|z - t| < width / 2]."""

    @staticmethod
    def forward(
        ctx: Any, z: Float[Tensor, "tokens width"], t: Float[Tensor, "tokens width"], width: float
    ) -> Float[Tensor, "tokens width"]:
        ctx.save_for_backward(z, t)
        ctx.width = width
        return z * (z > t)

    @staticmethod
    def backward(
        ctx: Any, *grads: Float[Tensor, "tokens width"]
    ) -> tuple[Float[Tensor, "tokens width"], Float[Tensor, "tokens width"], None]:
        z, t = ctx.saved_tensors
        near = ((z - t).abs() < ctx.width / 2).to(z.dtype)
        return grads[0] * (z > t), -grads[0] * (t / ctx.width) * near, None


class _Step(torch.autograd.Function):
    """1[z > t]; d/dz = 0, d/dt = -(1 / width) 1[|z - t| < width / 2]."""

    @staticmethod
    def forward(
        ctx: Any, z: Float[Tensor, "tokens width"], t: Float[Tensor, "tokens width"], width: float
    ) -> Float[Tensor, "tokens width"]:
        ctx.save_for_backward(z, t)
        ctx.width = width
        return (z > t).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Float[Tensor, "tokens width"]) -> tuple[None, Float[Tensor, "tokens width"], None]:
        z, t = ctx.saved_tensors
        near = ((z - t).abs() < ctx.width / 2).to(z.dtype)
        return None, -grads[0] / ctx.width * near, None


@final
class JumpRelu(SparseAutoencoder[JumpReluConfig], CodeLossByHand):
    """JumpReLU sparse autoencoder: a_i = z_i 1[z_i > threshold_i], loss + l0_coefficient * (l0 / target_l0 - 1)^2.

    Thresholds are float32 and positive. Latents within half a bandwidth below their threshold take part in training
    with activation 0, because their thresholds get a gradient.

    With a target it is a transcoder: what it reads is not centred, and `skip` adds x W_skip, as Gemma Scope 2 has it.
    With more_hooks it is a crosscoder (see `Crosscoder`), of which a weakly causal one is that whose encoder and decoder
    are 0 at the hook points that a latent does not read or write.

    Paper: Jumping ahead: improving reconstruction fidelity with JumpReLU sparse autoencoders, Rajamanoharan et al.
    2024, arXiv 2407.14435, equations 9 to 12.
    Differs from the paper: the penalty aims at a target l0 instead of weighing l0; the input is centred by b_dec;
    inputs have a median norm of sqrt(d_model), so bandwidth and thresholds are larger numbers; thresholds learn ten
    times as fast as weights, so that short runs arrive at their target; they begin at a quantile of the data, and
    those of dead latents fall until they fire again.
    """

    config_class = JumpReluConfig
    ragged = True
    selects = "above_bounds"
    computes_as = "jumprelu"
    foreign_tensors = ("threshold", "W_skip")
    extra_loss_terms = "code"
    in_units_of_activation = ("threshold",)
    lr_multiples: ClassVar[dict[str, float]] = {"threshold": 10.0}  # a threshold has farther to go than a weight

    def __init__(self, config: JumpReluConfig, d_in: int, d_out: int, selection_dtype: torch.dtype = torch.float32):
        super().__init__(config, d_in, d_out, selection_dtype)
        begin = config.initial_threshold
        if begin is None:  # until `calibrate`: random unit directions see scaled inputs as standard normal numbers
            begin = NormalDist().inv_cdf(1 - min(0.5, config.target_l0 / config.d_sae)) or 0.1
        self.threshold = nn.Parameter(torch.full((config.d_sae,), begin))
        self.W_skip = nn.Parameter(torch.zeros(d_in, d_out)) if config.skip else None

    @torch.no_grad()
    def calibrate(self, x: Float[Tensor, "rows d_in"]) -> None:
        """Puts all thresholds at one quantile of the pre-activations of `x`, so that a tenth of target_l0 latents fire.

        A threshold moves by at most the learning rate an update, so it must begin near its place. From above, few strong
        latents take shape first; at the target itself fvu ends 23 % higher, with a quantile for each latent as well
        (LOG.md).
        """
        if self.config.initial_threshold is not None:
            return
        rows = self.prepared(x).x[: max(FEWEST_ROWS, SAMPLE // self.d_sae)]
        pre_acts = self.centre(rows) @ self.W_enc + self.b_enc
        n_firing = max(1, round(FIRST_SHARE * self.config.target_l0 * len(rows)))
        self.threshold.fill_(pre_acts.flatten().topk(n_firing).values[-1].clamp_min(LEAST))

    @torch.no_grad()
    def observe(self, training_pass: TrainingPass) -> None:
        """Lowers the thresholds of dead latents by 1 % an update until they fire again, and keeps all of them positive.

        Below 0 a threshold would never get a gradient again.
        """
        self.threshold.mul_(1 - REVIVAL * self.dead()).clamp_(min=LEAST)

    def selection_bounds(self) -> Float[Tensor, " d_sae"]:
        """The thresholds; in training half a bandwidth below them, where thresholds get a gradient."""
        return self.threshold.detach() - (self.config.bandwidth / 2 if self.training else 0.0)

    def select(self, pre_acts: Float[Tensor, "tokens d_sae"], selection: SelectionInput) -> Int[Tensor, "tokens width"]:
        """Latents above their threshold; in training also latents within half a bandwidth below it."""
        return selection_for(pre_acts).above(pre_acts, self.selection_bounds())

    def activate(
        self, values: Float[Tensor, "tokens width"], indices: Int[Tensor, "tokens width"]
    ) -> Float[Tensor, "tokens width"]:
        """z if it is above the threshold, else 0."""
        threshold = pick(self.threshold, indices)
        return _Jump.apply(values, threshold, self.config.bandwidth)  # pyright: ignore[reportReturnType]

    def extra_loss(self, training_pass: TrainingPass) -> Float[Tensor, ""]:
        """The penalty, at the weight to which it has risen."""
        threshold = pick(self.threshold, training_pass.encoding.top_indices)
        fired: Tensor = _Step.apply(training_pass.values, threshold, self.config.bandwidth)  # pyright: ignore[reportAssignmentType]
        l0 = self.mean_over_batch(fired.sum(1))
        return (
            self.config.l0_coefficient
            * self.config.risen(training_pass.tokens_seen)
            * (l0 / self.config.target_l0 - 1).square()
        )

    def code_loss(self, flat_pass: FlatPass) -> CodeLoss:
        """The penalty by hand: dL/dz = g 1[z > t], dL/dt = -((g t + p) / width) 1[|z - t| < width / 2].

        g is the gradient of the activation, p that of the penalty by one firing more.
        """
        config, z, g = self.config, flat_pass.values, flat_pass.grad_acts
        t = self.threshold.detach()[flat_pass.latents]
        weight = config.l0_coefficient * config.risen_on_device(flat_pass.tokens_seen)
        distance = flat_pass.sum_over_batch(flat_pass.n_active) / flat_pass.n_tokens / config.target_l0 - 1
        p = 2 * weight * distance / (config.target_l0 * flat_pass.n_tokens)

        is_near = (z - t).abs() < config.bandwidth / 2
        grad_threshold = torch.where(is_near, (g * t + p) * (-1 / config.bandwidth), 0.0)
        gradients = {"threshold": flat_pass.sum_by_latent(grad_threshold)}

        return CodeLoss(weight * distance.square(), torch.where(z > t, g, 0.0), gradients)
