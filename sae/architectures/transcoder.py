"""Transcoder: reads what enters an MLP and reconstructs what leaves it, with a sparse code in between."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae.architectures.selections import KLargest
from sae.architectures.settings import KeepsK, ReadsContext
from sae.foundation.section import Count, Section
from sae.model.context_prediction import ContextPrediction
from sae.model.hookpoints import HookPoint, HookPointField


@final
class ContextSettings(Section):
    """Attention of a temporal dictionary over the codes of the tokens before."""

    n_layers: Count = Field(
        default=1, ge=1, le=64, description="Layers, each of which predicts what the former ones left."
    )
    n_heads: Count = Field(default=8, ge=1, description="Heads of a layer.")
    d_key: Count = Field(default=64, ge=1, description="Numbers of a query, over all heads.")


@final
class TranscoderConfig(KeepsK):
    """Settings of a transcoder."""

    example: ClassVar[dict[str, Any]] = {"target": "mlp_out.0"}

    architecture: Literal["transcoder"] = Field(
        default="transcoder", description="TopK code of one hook point that reconstructs another."
    )
    target: HookPointField = Field(description="Hook point to reconstruct, for example mlp_out.8 from mlp_in.8.")
    skip: bool = Field(default=False, description="Add a linear map from input to output beside the code.")
    context: ContextSettings | None = Field(
        default=None,
        description="Of a temporal dictionary, which is opened and not trained here: it codes what the tokens before do not "
        "predict of `hook`, and reconstructs `hook`.",
    )

    @property
    def reads(self) -> tuple[HookPoint, ...]:
        """The hook point, and with a context what is predicted there."""
        return (self.hook,) if self.context is None else (self.hook, self.hook.predicted)

    @property
    def writes(self) -> tuple[HookPoint, ...]:
        """The target."""
        return (self.target,)

    @model_validator(mode="after")
    def _target_differs(self) -> TranscoderConfig:
        if self.context is None:
            if self.target == self.hook:
                raise ValueError(f"target is the hook itself ({self.hook}); for that use architecture topk")
            return self

        n_heads, d_key = self.context.n_heads, self.context.d_key
        if self.target != self.hook or not self.skip:
            raise ValueError("context: target is the hook itself, and skip is true: it passes on what was predicted")
        if self.d_sae % n_heads:
            raise ValueError(f"context.n_heads: {n_heads} heads cannot share {self.d_sae} latents")
        if d_key % n_heads:
            raise ValueError(f"context.n_heads: {n_heads} heads cannot share d_key {d_key}")
        return self


@final
class Transcoder(KLargest[TranscoderConfig], ReadsContext):
    """Transcoder: y_hat = sum_i a_i d_i + b_dec (+ x W_skip), a = ReLU(TopK(x W_enc + b_enc)); x is not centred.

    With a context it is a temporal sparse autoencoder: x is [activation, p], with p what the tokens before predict of it
    (`ContextPrediction`), W_enc is [W, -W], so that what is new is coded, and W_skip adds p: x_hat = p + a W_dec + b_dec.

    Paper: Transcoders find interpretable LLM feature circuits, Dunefsky et al. 2024, arXiv 2406.11944; skip:
    Transcoders beat sparse autoencoders for interpretability, Paulo et al. 2025, arXiv 2501.18823; context: Lubana et al.
    2025, arXiv 2511.01836.
    Differs from the papers: TopK in place of ReLU with L1.
    """

    config_class = TranscoderConfig
    foreign_tensors = ("W_skip",)

    def __init__(self, config: TranscoderConfig, d_in: int, d_out: int, selection_dtype: torch.dtype = torch.float32):
        super().__init__(config, d_in, d_out, selection_dtype)
        self.W_skip = nn.Parameter(torch.zeros(d_in, d_out)) if config.skip else None
        self.context = None
        if config.context is not None:
            sizes = config.context
            self.context = ContextPrediction(config.d_sae, sizes.n_layers, sizes.n_heads, sizes.d_key)

    def predict(self, x: Float[Tensor, "contexts length d"]) -> Float[Tensor, "contexts length d"]:
        """See `ReadsContext`; zeros without a context."""
        if self.context is None:
            return torch.zeros_like(x)
        read = self.W_enc[: self.d_out]
        return self.context(x, W_enc=read, b_enc=self.b_enc, W_dec=self.W_dec, b_dec=self.b_dec)
