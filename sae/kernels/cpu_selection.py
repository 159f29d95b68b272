"""The selection of latents in the hand-written step on a CPU; `cpu.top_k_indices` is the top-k itself."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.kernels.cpu import gather_dot, top_k_indices


def fits_groups(n_latents: int, k: int) -> bool:
    """Never: the encoder's product here gives no maxima, and `cpu.top_k_indices` makes its own."""
    return False


def top_k(
    pre_acts: Float[Tensor, "n m"], k: int, maxima: Float[Tensor, "n groups"] | None = None
) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """(latents in int32, values in float32), [n, k] each, of the k largest per token, by ascending latent."""
    indices = top_k_indices(pre_acts, k)
    return indices.int(), pre_acts.gather(1, indices).float()


def batch_pairs(
    pre_acts: Float[Tensor, "n m"], wanted: int, maxima: Float[Tensor, "n groups"] | None = None
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """(tokens, latents) [wanted] of the largest pre-activations of the whole batch, sorted by token."""
    n, m = pre_acts.shape
    places = pre_acts.reshape(-1).topk(min(wanted, n * m), sorted=False).indices.sort().values
    tokens = places // m
    return tokens, places - tokens * m


def encode(
    centred: Float[Tensor, "n d"], table: Float[Tensor, "m d"], bias: Float[Tensor, " m"], with_maxima: bool = False
) -> tuple[Float[Tensor, "n m"], None]:
    """(pre-activations [tokens, latents] in the table's dtype, nothing)."""
    return torch.addmm(bias.to(table.dtype), centred.to(table.dtype), table.T), None


def values_at(
    pre_acts: Float[Tensor, "n m"] | None,
    indices: Int[Tensor, "n k"],
    centred: Float[Tensor, "n d"],
    table: Float[Tensor, "m d"],
    *,
    bias: Float[Tensor, " m"],
) -> Float[Tensor, "n k"]:
    """Pre-activations [n, k] of the selected latents in float32, summed in a fixed order.

    The encoder's product is not used: its last bits depend on how the library shares the work out.
    """
    return gather_dot(centred, table, indices) + bias[indices]
