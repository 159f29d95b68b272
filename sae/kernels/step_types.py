"""The types that pass between the kernels of a training step, and the interface that the CPU's and the GPU's satisfy.

Shapes, here and in the kernels: n tokens of a batch, k latents kept per token (or p pairs of a `FlatCode`), m latents
of the dictionary, d numbers per activation, l nested prefixes (1 unless the loss is a sum over prefixes).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor


class WeightTable(NamedTuple):
    """One weight matrix stored by latent, [m, d], with Adam's two moments.

    `moment_scales` [m, 2] is empty unless the moments are 8-bit codes (see `moments`). `rounded` holds the weights in
    the precision that matrix products read.
    """

    weights: Float[Tensor, "m d"]
    first_moment: Real[Tensor, "m d"]
    second_moment: Real[Tensor, "m d"]
    moment_scales: Float[Tensor, "rows 2"]
    rounded: Float[Tensor, "m d"]


class ParameterState(NamedTuple):
    """A parameter, or this process's part of it, with Adam's two moments, all of one shape."""

    weights: Float[Tensor, " ..."]
    first_moment: Real[Tensor, " ..."]
    second_moment: Real[Tensor, " ..."]


class PreparedRows(NamedTuple):
    """A batch in the dictionary's units.

    target [n, d]; `centred` [n, d] is target - b_dec as it is stored; `target_squares` [n] are squared norms.
    """

    target: Float[Tensor, "n d"]
    centred: Float[Tensor, "n d"]
    target_squares: Float[Tensor, " n"]


class FlatCode(NamedTuple):
    """A sparse code stored as a flat list of (token, latent) pairs, sorted by token: CSR without padding.

    `tokens` [p] is the token of every pair; the pairs of token t are starts[t] .. starts[t + 1].
    """

    tokens: Int[Tensor, " p"]
    starts: Int[Tensor, " starts"]

    @classmethod
    def from_tokens(cls, tokens: Int[Tensor, " p"], n: int) -> FlatCode:
        """From the token of every pair (ascending), of `n` tokens in all."""
        starts = torch.searchsorted(tokens, torch.arange(n + 1, device=tokens.device), out_int32=True)
        return cls(tokens.int(), starts)


class AdamStep(NamedTuple):
    """Adam's constants at one update.

    `numbers` lie in one tensor on the device, so that a recorded CUDA graph finds them there: [lr / (1 - beta1^t),
    1 / sqrt(1 - beta2^t), tokens of the batch in all processes, tokens of it in this process, t].
    """

    numbers: Float[Tensor, " 5"]
    beta1: float
    beta2: float
    eps: float

    @property
    def n_tokens(self) -> Float[Tensor, ""]:
        """Tokens of the batch in all processes."""
        return self.numbers[2]

    @property
    def n_own_tokens(self) -> Float[Tensor, ""]:
        """Tokens of the batch in this process."""
        return self.numbers[3]

    def with_lr_multiple(self, multiple: float) -> AdamStep:
        """The same with a multiple of the learning rate."""
        numbers = self.numbers.clone()
        numbers[0] *= multiple
        return self._replace(numbers=numbers)


class Decoded(NamedTuple):
    """What the decoder gives for a batch.

    acts and their gradients grad_acts: [n, k], or [p] of a `FlatCode`. error [l, n, d]: level i holds the sum of
    x_hat - y over the prefixes that contain the latents of level i (bfloat16 on a GPU, float32 on a CPU). by_token
    [3, n]: the squared error, its sum over the prefixes, the number of active latents.
    """

    acts: Float[Tensor, " ..."]
    grad_acts: Float[Tensor, " ..."]
    error: Float[Tensor, "l n d"]
    by_token: Float[Tensor, "3 n"]


class AuxGradients(NamedTuple):
    """Gradients of AuxK. `slots` [m] is the row of every dead latent in the other three, or -1."""

    slots: Int[Tensor, " m"]
    w_enc: Float[Tensor, "slots d"]
    w_dec: Float[Tensor, "slots d"]
    b_enc: Float[Tensor, " slots"]


class DecodeInput(NamedTuple):
    """What decoding a batch reads besides the selected pre-activations.

    latents [n, k] or [p]; table [m, d]; bias [d]; target [n, d]; `coefficient` is 2 / (tokens * variance); rows from
    `n_counted` on are padding; prefixes [l] or None; `starts` [n + 1] for a `FlatCode`.
    """

    latents: Int[Tensor, " ..."]
    table: Float[Tensor, "m d"]
    bias: Float[Tensor, " d"]
    target: Float[Tensor, "n d"]
    coefficient: Float[Tensor, ""]
    n_counted: Float[Tensor, ""]
    prefixes: Int[Tensor, " l"] | None
    starts: Int[Tensor, " starts"] | None


class RowSums(NamedTuple):
    """What both weight gradients are summed from: W_enc by grad_acts * centred input, W_dec by acts * error."""

    pairs: Any  # the kernels' own SortedPairs
    decoded: Decoded
    centred: Float[Tensor, "n d"]
    coefficient: Float[Tensor, ""]
    ends: Any  # on a GPU the running count of the parts that long latents are split into; None on a CPU


class StepKernels(Protocol):
    """The kernels of one device. `kernels.cpu_step` and `kernels.cuda_step` are modules that satisfy this interface.

    `kernels.reference` and the autograd step (`SparseAutoencoder.losses`) define what they must compute.
    """

    @property
    def DTYPE(self) -> torch.dtype:
        """Precision of the stored rows of input and error."""
        ...

    def widest(self, n_latents: int) -> int:
        """The most latents per token for which these kernels beat dense products."""
        ...

    def numbers(self, n: int, device: torch.device) -> Int[Tensor, " n"]:
        """0 .. n - 1."""
        ...

    def rounded(self, table: Float[Tensor, "m d"], selection_dtype: torch.dtype) -> Float[Tensor, "m d"]:
        """A weight table as the encoder's product reads it."""
        ...

    def prepare(
        self, raw: Float[Tensor, "n d"], scale: Float[Tensor, " d"], centre: Float[Tensor, " d"]
    ) -> PreparedRows:
        """(raw * scale; that minus `centre`; squared norms [n] of the first)."""
        ...

    def encode(
        self,
        centred: Float[Tensor, "n d"],
        table: Float[Tensor, "m d"],
        bias: Float[Tensor, " m"],
        with_maxima: bool = ...,
    ) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n groups"] | None]:
        """(pre-activations [n, m]; maxima of groups of latents, or None)."""
        ...

    def fits_groups(self, n_latents: int, k: int) -> bool:
        """Whether `top_k` can look for the k largest among the maxima of groups."""
        ...

    def top_k(
        self, pre_acts: Float[Tensor, "n m"], k: int, maxima: Float[Tensor, "n groups"] | None = ...
    ) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
        """(latents in int32, values in float32), [n, k] each, of the k largest per token."""
        ...

    def batch_pairs(
        self, pre_acts: Float[Tensor, "n m"], wanted: int, maxima: Float[Tensor, "n groups"] | None = ...
    ) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
        """(tokens, latents) [wanted] of the largest pre-activations of the whole batch, sorted by token."""
        ...

    def values_at(
        self,
        pre_acts: Float[Tensor, "n m"] | None,
        indices: Int[Tensor, "n k"],
        centred: Float[Tensor, "n d"],
        table: Float[Tensor, "m d"],
        *,
        bias: Float[Tensor, " m"],
    ) -> Float[Tensor, "n k"]:
        """Pre-activations [n, k] of the selected latents in float32."""
        ...

    def row_times(self, row: Float[Tensor, " n"], table: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
        """row [n] times a table [n, d], in float32."""
        ...

    def decode(
        self, values: Float[Tensor, " ..."], decoding: DecodeInput, rectify: bool = ..., error_dtype: torch.dtype = ...
    ) -> Decoded:
        """Activations, errors, gradients of the activations."""
        ...

    def sorted_pairs(self, latents: Int[Tensor, " ..."], n_latents: int, tokens: Int[Tensor, " p"] | None = ...) -> Any:
        """The pairs sorted by latent."""
        ...

    def bias_gradient_and_firings(
        self, pairs: Any, decoded: Decoded, since: Int[Tensor, " m"], adam: AdamStep, *, aux: AuxGradients | None
    ) -> tuple[Float[Tensor, " m"], Any]:
        """(gradient of b_enc; what `RowSums.ends` wants); updates the tokens since every latent fired."""
        ...

    def update_vector(self, state: ParameterState, gradient: Float[Tensor, " n"], adam: AdamStep) -> None:
        """Adam on a vector (weights and both moments), in place."""
        ...

    def update_rows(
        self,
        sums: RowSums,
        encoder: WeightTable,
        decoder: WeightTable,
        *,
        adam: AdamStep,
        aux: AuxGradients | None,
        prefixes: Int[Tensor, " l"] | None = ...,
    ) -> None:
        """Both weight gradients, Adam, and the unit norm of the decoder rows, in place."""
        ...

    def row_gradients(
        self,
        sums: RowSums,
        adam: AdamStep,
        dtype: torch.dtype,
        *,
        aux: AuxGradients | None,
        prefixes: Int[Tensor, " l"] | None = ...,
    ) -> Iterator[Float[Tensor, "m d"]]:
        """The encoder's weight gradient [m, d], then the decoder's, to be summed over processes.

        dtype: float32, or bfloat16 rounded at random (`moments.narrow`).
        """
        ...

    def apply_rows(
        self, gradients: Float[Tensor, "parts m d"], table: WeightTable, *, adam: AdamStep, has_unit_norm: bool
    ) -> None:
        """Adam on the rows of one table with gradients that are there in parts, and their unit norm if they have it."""
        ...
