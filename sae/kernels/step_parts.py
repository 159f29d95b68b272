"""What the kernels of a training step hand to one another, on a CPU as on a GPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

More = tuple[Tensor, Tensor, Tensor, Tensor]  # the row of every latent or -1; rows for encoder, decoder, b_enc


class Rows(NamedTuple):
    """A table by latent: weights [latents, width]; both moments and their scales [latents, 2] (empty but for 8-bit codes, see
    `moments`); the weights as products read them."""

    weights: Tensor
    mean: Tensor
    square: Tensor
    scales: Tensor
    rounded: Tensor


class Flat(NamedTuple):
    """Whose the pairs of a code are that stand one after another, token by token, without empty places: `tokens` [pairs], and
    those of token t are starts[t] .. starts[t + 1]. Of a code [tokens, width] with empty places, `shape` is that and `places`
    [pairs] where its pairs were."""

    tokens: Tensor
    starts: Tensor
    shape: tuple[int, int]
    places: Tensor | None = None

    @classmethod
    def of(cls, indices: Tensor) -> Flat:
        """Of latents [tokens, width], -1 where there is none."""
        n, width = indices.shape
        places = (indices.flatten() >= 0).nonzero()[:, 0]
        return cls.of_tokens(places // width, n)._replace(shape=(n, width), places=places)

    @classmethod
    def of_tokens(cls, tokens: Tensor, n: int) -> Flat:
        """Of the tokens of all pairs, ascending; there are n."""
        starts = torch.searchsorted(tokens, torch.arange(n + 1, device=tokens.device), out_int32=True)
        return cls(tokens.int(), starts, (n, 0))

    def pairs(self, code: Tensor) -> Tensor:
        """Of something [tokens, width] the [pairs] that are there."""
        return code.flatten()[self.places]

    def spread(self, pairs: Tensor, empty: float) -> Tensor:
        """[tokens, width] of something [pairs]."""
        out = pairs.new_full(self.shape, empty)
        out.view(-1)[self.places] = pairs
        return out


class Adam(NamedTuple):
    """One update's numbers on the device, [lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), rows that count in all processes,
    rows that count in this one, t], and what stays."""

    numbers: Tensor
    beta1: float
    beta2: float
    eps: float

    def faster(self, multiple: float) -> Adam:
        """The same with a multiple of the learning rate."""
        return self._replace(numbers=self.numbers * self.numbers.new_tensor([multiple, 1.0, 1.0, 1.0, 1.0]))


class Decoded(NamedTuple):
    """Of one batch: activations and their gradients [tokens, k], or [pairs] of a `Flat` code; the sum of x_hat - target over the
    prefixes that hold a latent of each prefix [prefixes, tokens, width]; by token [3, tokens] the squared error, its sum over
    the prefixes, and the number of activations over 0. Errors are in bfloat16 on a GPU, in float32 on a CPU."""

    acts: Tensor
    to_acts: Tensor
    error: Tensor
    by_token: Tensor
