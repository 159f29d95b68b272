"""The sparse autoencoder that every architecture shares: weights, centring, decoding, losses, dead latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, NamedTuple, final

import torch
import torch.nn.functional as F
from pydantic import Field, StringConstraints, model_validator
from torch import Tensor, nn

from sae.hookpoints import HookPointField
from sae.kernels.sparse import gather_dot, gather_sum
from sae.section import Count, Section


class ArchitectureConfig(Section):
    """What every architecture's settings begin with; a subclass adds its `architecture` tag and its own."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = Field(
        description="Name of the dictionary: its folder and its address in the explorer."
    )
    hook: HookPointField = Field(description="Hook point, for example resid_post.8.")
    d_sae: Count = Field(default=4096, ge=1, description="Number of latents.")
    k: Count = Field(default=32, ge=1, description="Latents kept per token.")
    k_aux: Count = Field(
        default=256, ge=0, description="Dead latents that the auxiliary loss may use per token; 0: no AuxK."
    )
    aux_coefficient: float = Field(default=1 / 32, ge=0, description="Weight of the auxiliary loss.")
    dead_after_tokens: Count = Field(
        default=10_000_000, ge=1, description="A latent silent for so many tokens is dead."
    )

    @model_validator(mode="after")
    def _k_fits(self) -> ArchitectureConfig:
        if self.k > self.d_sae:
            raise ValueError(f"k is {self.k}, allowed is 1..d_sae ({self.d_sae})")
        return self


class Encoding(NamedTuple):
    """Sparse code of a batch: activations [tokens, k] (zero where fewer fire) and their latents [tokens, k]."""

    top_acts: Tensor
    top_indices: Tensor


class Losses(NamedTuple):
    """Terms of one step: total (to differentiate), mse in input units, aux, and the pass they came from."""

    total: Tensor
    aux: Tensor
    x_hat: Tensor
    encoding: Encoding


class SparseAutoencoder(nn.Module, ABC):
    """x_hat = sum_i a_i d_i + b_dec with few a_i > 0; a = ReLU((x - b_dec) W_enc + b_enc) on the selected latents.

    Shapes: W_enc [d_model, d_sae] (stored latent by latent), W_dec [d_sae, d_model] with unit rows, b_enc [d_sae],
    b_dec [d_model]. Selection runs in `selection_dtype`; the selected activations are computed in float32.
    """

    config_class: ClassVar[type[ArchitectureConfig]]

    def __init__(self, config: ArchitectureConfig, d_model: int, selection_dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config, self.selection_dtype = config, selection_dtype
        self.W_enc = nn.Parameter(torch.zeros(config.d_sae, d_model).T)
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(torch.zeros(config.d_sae, d_model))
        self.b_dec = nn.Parameter(torch.zeros(d_model))
        self.tokens_since_fired: Tensor
        self.register_buffer("tokens_since_fired", torch.zeros(config.d_sae, dtype=torch.int64), persistent=False)

    @property
    def d_model(self) -> int:
        return len(self.b_dec)

    @property
    def d_sae(self) -> int:
        return len(self.b_enc)

    @final
    @torch.no_grad()
    def initialise(self, generator: torch.Generator, centre: Tensor) -> None:
        """Random unit decoder rows, encoder tied to them, zero b_enc, b_dec at `centre`."""
        rows = torch.randn(self.d_sae, self.d_model, generator=generator)
        self.W_dec.copy_(F.normalize(rows, dim=1))
        self.W_enc.copy_(self.W_dec.T)
        self.b_dec.copy_(centre)

    @final
    @torch.no_grad()
    def pre_acts(self, x: Tensor) -> Tensor:
        """(x - b_dec) W_enc + b_enc, [tokens, d_sae], in `selection_dtype`; not differentiated."""
        dtype = self.selection_dtype
        centred = (x - self.b_dec).to(dtype)
        return torch.addmm(self.b_enc.to(dtype), centred, self.W_enc.to(dtype))

    @abstractmethod
    def select(self, pre_acts: Tensor) -> Tensor:
        """Latents [tokens, k] to keep, given all pre-activations [tokens, d_sae]."""

    @final
    def encode(self, x: Tensor) -> Encoding:
        """Sparse code of activations x [tokens, d_model]."""
        top_indices = self.select(self.pre_acts(x))
        values = gather_dot(x - self.b_dec, self.W_enc.T, top_indices) + self.b_enc[top_indices]
        return Encoding(F.relu(values), top_indices)

    @final
    def decode(self, encoding: Encoding) -> Tensor:
        """Reconstruction x_hat [tokens, d_model]."""
        return gather_sum(encoding.top_acts, self.W_dec, encoding.top_indices) + self.b_dec

    @final
    def forward(self, x: Tensor) -> Tensor:
        """decode(encode(x))."""
        return self.decode(self.encode(x))

    @final
    def losses(self, x: Tensor, variance: Tensor) -> Losses:
        """mean ||x - x_hat||^2 / variance + aux_coefficient * AuxK + extra_loss, on a training batch.

        `variance` is mean ||x - mean x||^2 of a sample, so that the first term is an estimate of fvu.
        """
        encoding = self.encode(x)
        x_hat = self.decode(encoding)
        error = x - x_hat
        aux = self.aux_loss(x, error.detach())
        total = error.square().sum(1).mean() / variance + self.config.aux_coefficient * aux
        extra = self.extra_loss(x, encoding, x_hat)
        return Losses(total if extra is None else total + extra, aux, x_hat, encoding)

    def extra_loss(self, x: Tensor, encoding: Encoding, x_hat: Tensor) -> Tensor | None:
        """A further term of the loss; none by default."""
        return None

    @final
    def dead(self) -> Tensor:
        """Which latents [d_sae] have been silent for `dead_after_tokens`."""
        return self.tokens_since_fired >= self.config.dead_after_tokens

    @final
    def aux_loss(self, x: Tensor, error: Tensor) -> Tensor:
        """AuxK: share of the detached error that the strongest dead latents leave; 0 when none is dead.

        ||e - e_hat||^2 / ||e - mean e||^2 with e_hat decoded without b_dec (Gao et al. 2024, arXiv 2406.04093,
        section A.2; the released code adds b_dec to both sides, which is the same).
        """
        dead = self.dead().nonzero()[:, 0]
        count = min(self.config.k_aux, len(dead))
        if count == 0 or self.config.aux_coefficient == 0:
            return x.new_zeros(())
        pre_acts = (x - self.b_dec) @ self.W_enc[:, dead] + self.b_enc[dead]
        top = pre_acts.topk(count, dim=1, sorted=False)
        acts = torch.zeros_like(pre_acts).scatter(1, top.indices, F.relu(top.values))
        e_hat = acts @ self.W_dec[dead]
        return (error - e_hat).square().sum() / (error - error.mean(0)).square().sum().clamp_min(1e-30)

    @final
    @torch.no_grad()
    def count_firings(self, encoding: Encoding) -> None:
        """Advances `tokens_since_fired`; a selected latent whose activation is 0 has not fired."""
        fired = torch.zeros_like(self.tokens_since_fired, dtype=torch.bool)
        fired[encoding.top_indices[encoding.top_acts > 0]] = True
        self.tokens_since_fired += len(encoding.top_acts)
        self.tokens_since_fired[fired] = 0

    @final
    @torch.no_grad()
    def project_decoder_gradient(self) -> None:
        """Removes from the gradient of every decoder row its part along the row."""
        grad = self.W_dec.grad
        if grad is not None:
            grad -= (grad * self.W_dec).sum(1, keepdim=True) * self.W_dec

    @final
    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Gives every decoder row unit norm again after an update."""
        self.W_dec.copy_(F.normalize(self.W_dec, dim=1))

    @final
    @torch.no_grad()
    def fold_scale(self, scale: float) -> None:
        """Turns a dictionary of scale * x into the same dictionary of x: b_enc / scale and b_dec / scale.

        Activations then are in units of x; rows of W_dec keep unit norm. Exact because ReLU and the selection of
        the largest commute with a positive factor.
        """
        self.b_enc /= scale
        self.b_dec /= scale

    @staticmethod
    def load(path_or_url: str) -> SparseAutoencoder:
        """The published dictionary in a folder, or at the address of a saedex server's download route."""
        from sae.dictionary import load

        return load(path_or_url)
