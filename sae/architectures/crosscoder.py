"""Crosscoder: one sparse code for several hook points at once, so that a feature is followed through the layers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

from pydantic import Field, model_validator

from sae.architectures.k_largest import KLargest
from sae.architectures.settings import KeepsK
from sae.model.hookpoints import HookPoint, HookPointField


@final
class CrosscoderConfig(KeepsK):
    """Settings of a crosscoder."""

    example: ClassVar[dict[str, Any]] = {"more_hooks": ["resid_post.1"]}

    architecture: Literal["crosscoder"] = Field(
        default="crosscoder", description="TopK code of several hook points side by side, reconstructing them all."
    )
    more_hooks: tuple[HookPointField, ...] = Field(
        min_length=1, description="The further hook points; `hook` is the first and the one that pages show."
    )

    @property
    def reads(self) -> tuple[HookPoint, ...]:
        """All hook points."""
        return (self.hook, *self.more_hooks)

    @property
    def writes(self) -> tuple[HookPoint, ...]:
        """All hook points."""
        return self.reads

    @model_validator(mode="after")
    def _hooks_differ(self) -> CrosscoderConfig:
        if len(set(self.reads)) < len(self.reads):
            raise ValueError("more_hooks names a hook point twice, or `hook` again")
        return self


@final
class Crosscoder(KLargest[CrosscoderConfig]):
    """Crosscoder: a = ReLU(TopK(sum_p (x_p - b_p) W_enc_p + b_enc)), x_hat_p = a W_dec_p + b_p.

    The activations of the hook points are joined side by side. Each is scaled to a median norm of sqrt(d_model), so
    that all weigh the same. In these units the blocks of a decoder row together have unit norm, and how that norm is
    spread over the hook points says where a latent lives. Published weights are in the activations' own units.

    Paper: Sparse crosscoders for cross-layer features and model diffing, Lindsey et al. 2024 (Transformer Circuits).
    Differs from the paper: TopK in place of ReLU with an L1 weighted by decoder norms.
    """

    config_class = CrosscoderConfig
    computes_as = None  # no foreign format holds several hook points
