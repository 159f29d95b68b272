"""The three sparse products of a dictionary, in plain torch: the definition that every faster kernel is held to.

A token has `k` pairs (latent, activation). With `table` [latents, width], `indices` [tokens, k]:

    gather_dot   out[n, j] = <rows[n], table[indices[n, j]]>          activations of chosen latents
    gather_sum   out[n]    = sum_j weights[n, j] * table[indices[n, j]]   the decoder
    scatter_rows out[i]    = sum over pairs with latent i of weights[n, j] * rows[n]   gradient of `table`

The gradient of each is another of the three.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_NUMBERS = 1 << 26


def _chunks(indices: Tensor, width: int) -> range:
    """Row ranges whose gathered block stays below `CHUNK_NUMBERS` numbers."""
    return range(0, len(indices), max(1, CHUNK_NUMBERS // (indices.shape[1] * width)))


def gather_dot(rows: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    """Inner products [tokens, k] of every token's row with the table rows it names."""
    out = rows.new_empty(indices.shape)
    steps = _chunks(indices, rows.shape[1])
    for start in steps:
        part = slice(start, start + steps.step)
        out[part] = torch.einsum("nd,nkd->nk", rows[part], table[indices[part]])
    return out


def gather_sum(weights: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    """Weighted sums [tokens, width] of the table rows that every token names."""
    out = table.new_empty(len(indices), table.shape[1])
    steps = _chunks(indices, table.shape[1])
    for start in steps:
        part = slice(start, start + steps.step)
        out[part] = torch.einsum("nk,nkd->nd", weights[part], table[indices[part]])
    return out


def scatter_rows(weights: Tensor, rows: Tensor, indices: Tensor, n_latents: int) -> Tensor:
    """For every latent the weighted sum [latents, width] of the rows of the tokens that name it."""
    dense = rows.new_zeros(len(rows), n_latents).scatter_add_(1, indices, weights)
    return dense.T @ rows


def top_k_indices(pre_acts: Tensor, k: int) -> Tensor:
    """Indices [tokens, k], ascending, of the k largest pre-activations of every token."""
    return pre_acts.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
