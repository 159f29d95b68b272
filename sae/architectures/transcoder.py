"""Transcoder: reads what enters an MLP and reconstructs what leaves it, with a sparse code in between."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import torch
from pydantic import Field, model_validator
from torch import nn

from sae.architectures.selections import KLargest
from sae.architectures.settings import KeepsK
from sae.model.hookpoints import HookPoint, HookPointField


@final
class TranscoderConfig(KeepsK):
    """Settings of a transcoder."""

    example: ClassVar[dict[str, Any]] = {"target": "mlp_out.0"}

    architecture: Literal["transcoder"] = Field(
        default="transcoder", description="TopK code of one hook point that reconstructs another."
    )
    target: HookPointField = Field(description="Hook point to reconstruct, for example mlp_out.8 from mlp_in.8.")
    skip: bool = Field(default=False, description="Add a linear map from input to output beside the code.")

    @property
    def writes(self) -> tuple[HookPoint, ...]:
        """The target."""
        return (self.target,)

    @model_validator(mode="after")
    def _target_differs(self) -> TranscoderConfig:
        if self.target == self.hook:
            raise ValueError(f"target is the hook itself ({self.hook}); for that use architecture topk")
        return self


@final
class Transcoder(KLargest[TranscoderConfig]):
    """Transcoder: y_hat = sum_i a_i d_i + b_dec (+ x W_skip), a = ReLU(TopK(x W_enc + b_enc)); x is not centred.

    Paper: Transcoders find interpretable LLM feature circuits, Dunefsky et al. 2024, arXiv 2406.11944; skip:
    Transcoders beat sparse autoencoders for interpretability, Paulo et al. 2025, arXiv 2501.18823.
    Differs from the papers: TopK in place of ReLU with L1.
    """

    config_class = TranscoderConfig
    foreign_tensors = ("W_skip",)

    def __init__(self, config: TranscoderConfig, d_in: int, d_out: int, selection_dtype: torch.dtype = torch.float32):
        super().__init__(config, d_in, d_out, selection_dtype)
        self.W_skip = nn.Parameter(torch.zeros(d_in, d_out)) if config.skip else None
