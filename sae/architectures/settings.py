"""What the settings of every architecture have in common, and the types that pass through a dictionary."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Real
from pydantic import Field, model_validator
from torch import Tensor

from feature_store.dictionary_files import DictionaryName
from sae.foundation.distributed import ALONE, Processes
from sae.foundation.section import Count, Section
from sae.model.hookpoints import Channel, HookPoint, HookPointField

UNKNOWN_L0 = 64


class ArchitectureConfig(Section):
    """Settings of any dictionary. A subclass adds its `architecture` tag and settings."""

    example: ClassVar[dict[str, Any]] = {}  # settings without a default, as the contract tests give them

    name: DictionaryName = Field(description="Name of the dictionary: its folder and its address in the explorer.")
    hook: HookPointField = Field(description="Hook point, for example resid_post.8.")
    d_sae: Count = Field(default=4096, ge=1, description="Number of latents.")
    lr: float | None = Field(
        default=None, gt=0, lt=1, description="Adam's learning rate of this dictionary; none: train.lr."
    )
    seed: Count | None = Field(
        default=None, ge=0, lt=1 << 31, description="Seed of this dictionary's initial weights; none: the run's."
    )
    centre: Literal["geometric_median", "mean"] = Field(
        default="geometric_median", description="Where b_dec begins: a point that outliers hardly move, or the mean."
    )
    token_norm: bool | Literal["length"] = Field(
        default=False,
        description="Normalise every token to mean 0 and variance 1, or (length) to a norm of sqrt(d); decoding undoes it.",
    )
    k_aux: Count = Field(
        default=256, ge=0, description="Dead latents that the auxiliary loss may use per token; 0: no AuxK."
    )
    aux_coefficient: float = Field(default=1 / 32, ge=0, description="Weight of the auxiliary loss.")
    dead_after_tokens: Count = Field(
        default=10_000_000, ge=1, description="A latent that is silent for this many tokens is dead."
    )

    @property
    def reads(self) -> tuple[HookPoint, ...]:
        """Hook points that are the input: their activations are joined side by side."""
        return (self.hook,)

    @property
    def writes(self) -> tuple[HookPoint, ...]:
        """Hook points that are reconstructed: their activations are joined side by side."""
        return (self.hook,)

    @property
    def gradient(self) -> Channel | None:
        """The channel of coefficients that the selection reads; None if it reads none."""
        return None

    @property
    def activations(self) -> tuple[Channel, ...]:
        """The activations that are read and written: all that inference needs."""
        return tuple(map(Channel, dict.fromkeys((*self.reads, *self.writes))))

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Everything that training reads of the stream."""
        return (*self.activations, *((self.gradient,) if self.gradient else ()))

    @property
    def expected_l0(self) -> int:
        """About how many latents a token keeps, for estimates of memory made beforehand."""
        return min(UNKNOWN_L0, self.d_sae)

    @model_validator(mode="after")
    def _token_norm_fits(self) -> ArchitectureConfig:
        if self.token_norm and (self.reads != self.writes or len(self.reads) > 1):
            raise ValueError("token_norm is for dictionaries that read and write one hook point")
        return self


class KeepsK(ArchitectureConfig):
    """Settings of an architecture that keeps k latents per token, or k per token on average."""

    k: Count = Field(default=32, ge=1, description="Latents kept per token.")

    @property
    def expected_l0(self) -> int:
        """k."""
        return self.k

    @model_validator(mode="after")
    def _k_fits(self) -> KeepsK:
        if self.k > self.d_sae:
            raise ValueError(f"k is {self.k}, allowed is 1..d_sae ({self.d_sae})")
        return self


class SeveralHooks(ArchitectureConfig):
    """Settings of an architecture that can read several hook points at once and reconstruct them all: a crosscoder."""

    more_hooks: tuple[HookPointField, ...] = Field(
        default=(),
        description="Further hook points, read and reconstructed side by side: a crosscoder. Pages show `hook`.",
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
    def _hooks_differ(self) -> SeveralHooks:
        if len(set(self.reads)) < len(self.reads):
            raise ValueError("more_hooks names a hook point twice, or `hook` again")
        return self


class Penalised(ArchitectureConfig):
    """Settings of an architecture that becomes sparse through a term of the loss."""

    sparsity_warmup_tokens: Count = Field(
        default=100_000, ge=0, description="Activations over which the sparsity penalty rises from 0."
    )

    def risen(self, tokens_seen: int) -> float:
        """Share of the penalty's full weight that applies after `tokens_seen` activations."""
        return min(1.0, tokens_seen / max(self.sparsity_warmup_tokens, 1))

    def risen_on_device(self, tokens_seen: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The same of a number on a GPU, which Python does not wait for."""
        return (tokens_seen / max(self.sparsity_warmup_tokens, 1)).clamp(max=1.0)


class ReadsContext(ABC):
    """A dictionary that reads, beside an activation, what it predicts of it from the tokens before.

    Its input is both side by side, the second one at the hook point `config.hook.predicted`.
    """

    @abstractmethod
    def predict(self, x: Float[Tensor, "contexts length d"]) -> Float[Tensor, "contexts length d"]:
        """The prediction at every token of whole contexts, in float32."""


class Encoding(NamedTuple):
    """Sparse code of a batch.

    top_acts [tokens, width] (0 if fewer latents fire) and top_indices [tokens, width] are activations and their
    latents; with `token_norm` also the mean and the deviation [tokens, 1] that decoding puts back.
    """

    top_acts: Float[Tensor, "tokens width"]
    top_indices: Int[Tensor, "tokens width"]
    mean: Float[Tensor, "tokens 1"] | None = None
    deviation: Float[Tensor, "tokens 1"] | None = None


class Batch(NamedTuple):
    """Rows to train on: input x [tokens, d_in], target y [tokens, d_out], coefficients of the loss [tokens, d_in]."""

    x: Float[Tensor, "tokens d_in"]
    y: Float[Tensor, "tokens d_out"]
    gradient: Float[Tensor, "tokens d_in"] | None = None


class PreparedTokens(NamedTuple):
    """Rows [n, d_in] for the encoder, and the mean and deviation [n, 1] that were taken out of each token, if any."""

    x: Float[Tensor, "n d_in"]
    mean: Float[Tensor, "n 1"] | None
    deviation: Float[Tensor, "n 1"] | None


class SelectionInput(NamedTuple):
    """What a selection may look at besides the pre-activations: the centred input, and coefficients of the loss."""

    centred: Float[Tensor, "tokens d_in"]
    gradient: Float[Tensor, "tokens d_in"] | None


class TrainingPass(NamedTuple):
    """One forward pass of training.

    values [tokens, width] are the pre-activations of the selected latents, x_hat [tokens, d_out] the reconstruction,
    `variance` that of the target. In a flat list of pairs, values and activations are [p], and `counts` [tokens] says
    how many latents of a token are active.
    """

    batch: Batch
    values: Float[Tensor, " ..."]
    encoding: Encoding
    x_hat: Float[Tensor, "tokens d_out"]
    variance: Float[Tensor, ""]
    tokens_seen: int
    counts: Float[Tensor, " tokens"] | None = None

    @property
    def n_active(self) -> Real[Tensor, " tokens"]:
        """How many latents of every token are active."""
        return (self.encoding.top_acts.detach() > 0).sum(1) if self.counts is None else self.counts


class BatchMean:
    """Means over the tokens of a batch that several processes share, each of which has `share` of them.

    The value is that of the whole batch, the gradient that of this process's own mean; `SaeTrainer` multiplies it by the
    share and sums over processes.
    """

    def __init__(self, processes: Processes = ALONE, share: float = 1.0):
        self.processes, self.share = processes, share

    def __call__(self, numbers: Float[Tensor, " tokens"]) -> Float[Tensor, ""]:
        """The mean of a number for each token."""
        mean = numbers.mean()
        if self.processes.world_size == 1:
            return mean
        local_mean = mean.detach()
        return mean + (self.processes.all_reduce_sum(local_mean * self.share) - local_mean)


class Losses(NamedTuple):
    """Terms of the loss: the total (to differentiate), AuxK, and the pass that they come from."""

    total: Float[Tensor, ""]
    aux: Float[Tensor, ""]
    training_pass: TrainingPass


def batch_of(
    config: ArchitectureConfig,
    rows: dict[Channel, Float[Tensor, "tokens _width"]],
    dtype: torch.dtype | None = torch.float32,
) -> Batch:
    """The rows of every channel [tokens, width] joined as a dictionary reads and writes them, in `dtype` (None: as is)."""

    def side_by_side(hooks: tuple[HookPoint, ...]) -> Tensor:
        columns = [rows[Channel(hook)].to(dtype=dtype) for hook in hooks]
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)

    x = side_by_side(config.reads)
    y = x if config.reads == config.writes else side_by_side(config.writes)
    channel = config.gradient
    gradient = rows[channel].to(dtype=dtype) if channel is not None and channel in rows else None

    return Batch(x, y, gradient)
