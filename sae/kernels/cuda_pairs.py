"""The pairs of a token and a latent that it keeps, sorted by latent, on a GPU."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

# Pairs of one latent that one program adds up; more are added up in parts, else all wait for a frequent latent.
LONG = 256
SHIFT = 1 << 15  # 16 bits have a sign


@cache
def numbers(n: int, device: torch.device) -> Int[Tensor, " n"]:
    """0 .. n - 1 in int32; kept for ever, because recorded CUDA graphs read it at its address."""
    return torch.arange(n, dtype=torch.int32, device=device)


class SortingKeys(NamedTuple):
    """Latents' names as numbers that are sorted, and 0 .. n_latents in the same form."""

    keys: Int[Tensor, " p"]
    ends: Int[Tensor, " ends"]


def sorting_keys(latents: Int[Tensor, " p"], n_latents: int) -> SortingKeys:
    """Names of latents up to `n_latents`, in 16 bits if they fit, which sorts in half the passes."""
    if n_latents < 1 << 15:
        return SortingKeys(latents.short(), _short_numbers(n_latents + 1, 0, latents.device))
    if n_latents < 1 << 16:
        return SortingKeys((latents - SHIFT).short(), _short_numbers(n_latents + 1, SHIFT, latents.device))
    return SortingKeys(latents, numbers(n_latents + 1, latents.device))


@cache
def _short_numbers(n: int, shift: int, device: torch.device) -> Tensor:
    """0 .. n - 1, less the shift, in int16; kept for ever, as `numbers`."""
    return (torch.arange(n, device=device) - shift).short()


class SortedPairs:
    """The (token, latent) pairs of a batch sorted by latent; padding is named `n_latents`.

    Latents are [n, k], or [p] with the `tokens` [p] of a `FlatCode`. Latent i owns order[offsets[i] .. offsets[i + 1]].
    """

    def __init__(self, latents: Int[Tensor, " ..."], n_latents: int, tokens: Int[Tensor, " p"] | None):
        keys, ends = sorting_keys(latents.flatten(), n_latents)
        ordered, self.order = keys.sort(stable=True)
        self.tokens, self.k = (self.order, latents.shape[1]) if tokens is None else (tokens, 0)
        self.offsets = torch.searchsorted(ordered, ends, out_int32=True)
        self.n_latents, self.n_parts = n_latents, 2 * len(ordered) // LONG
