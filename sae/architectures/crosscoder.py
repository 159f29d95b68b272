"""Crosscoder: one sparse code for several hook points at once, so that a feature is followed through the layers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

from pydantic import Field

from sae.architectures.selections import KLargest
from sae.architectures.settings import KeepsK, SeveralHooks
from sae.model.hookpoints import HookPointField


@final
class CrosscoderConfig(KeepsK, SeveralHooks):
    """Settings of a crosscoder."""

    example: ClassVar[dict[str, Any]] = {"more_hooks": ["resid_post.1"]}

    architecture: Literal["crosscoder"] = Field(
        default="crosscoder", description="TopK code of several hook points side by side, reconstructing them all."
    )
    more_hooks: tuple[HookPointField, ...] = Field(
        min_length=1, description="The further hook points; `hook` is the first and the one that pages show."
    )


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
