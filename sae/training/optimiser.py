"""The config's section `train`: how long a dictionary is trained and with what steps; and the learning rate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sae.architectures import ArchitectureConfig
from sae.foundation.section import Count, Section


class TrainConfig(Section):
    """Length of training and the optimiser; every schedule is in tokens."""

    tokens: Count = Field(default=2_000_000, ge=2, description="Tokens read from the text for training.")
    batch_tokens: Count = Field(default=1024, ge=2, description="Activations per update.")
    lr: float | None = Field(
        default=None, gt=0, lt=1, description="Adam's learning rate; none: 2e-4 / sqrt(d_sae / 2^14)."
    )
    warmup_tokens: Count = Field(
        default=100_000, ge=0, description="Activations over which the learning rate rises from 0."
    )
    decay_tokens: Count | None = Field(
        default=None,
        ge=0,
        description="Activations over which the learning rate falls to 0 at the end; none: the last fifth of training.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Arithmetic of the selection of latents; auto: the language model's. All else is float32. On a CPU that "
        "multiplies bfloat16 numbers itself, the k largest of every token are those of float32 either way.",
    )
    checkpoint_tokens: Count | None = Field(
        default=None, ge=1, description="Activations between two checkpoints; none: two minutes of training."
    )
    parallel: Literal["replicas", "latents", "dictionaries"] = Field(
        default="replicas",
        description="How several processes (torchrun) share training. replicas: each has all dictionaries and a part of "
        "every batch. latents: each has a part of the latents and all rows. dictionaries: each has some dictionaries.",
    )
    exchange_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Number format in which replicas exchange gradients of weights. bfloat16: 2 bytes a number instead of 4, rounded at random, "
        "so that their means are right.",
    )
    moments: Literal["float32", "bfloat16", "int8"] = Field(
        default="float32",
        description="Number format of Adam's two moments: 8, 4 or 2 bytes a weight beside its own 4. Shorter ones are "
        "rounded at random, so that their means are right. Saves memory on a GPU; on a CPU only in checkpoints, and costs time.",
    )
    log_tokens: Count | None = Field(
        default=None,
        ge=1,
        description="Activations between two lines of metrics; none: 20,000, or a 500th of training if that is more.",
    )


def learning_rate(config: TrainConfig, sae: ArchitectureConfig, tokens_seen: int, total_tokens: int) -> float:
    """Linear warm-up, constant, linear decay to 0: as a function of activations trained on."""
    peak = sae.lr or config.lr or 2e-4 / (sae.d_sae / 2**14) ** 0.5
    decay = total_tokens // 5 if config.decay_tokens is None else config.decay_tokens
    rise = min(1.0, (tokens_seen + config.batch_tokens) / max(config.warmup_tokens, 1))
    fall = min(1.0, (total_tokens - tokens_seen) / max(decay, 1))
    return peak * rise * max(fall, 0.0)
