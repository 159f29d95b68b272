"""Sparse products and selections of a dictionary, in plain torch: the definition that faster kernels are held to.

A token has `k` pairs (latent, activation). With `table` [latents, width], `indices` [tokens, k]:

    gather_dot   out[n, j] = <rows[n], table[indices[n, j]]>          activations of chosen latents
    gather_sum   out[n]    = sum_j weights[n, j] * table[indices[n, j]]   the decoder
    scatter_rows out[i]    = sum over pairs with latent i of weights[n, j] * rows[n]   gradient of `table`

The gradient of each is another of the three.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNK_NUMBERS = 1 << 26


def _chunks(indices: Tensor, width: int) -> range:
    """Row ranges whose gathered block stays below `CHUNK_NUMBERS` numbers."""
    return range(0, len(indices), max(1, CHUNK_NUMBERS // (indices.shape[1] * width)))


def gather_dot(
    rows: Float[Tensor, "tokens width"], table: Float[Tensor, "latents width"], indices: Int[Tensor, "tokens k"]
) -> Float[Tensor, "tokens k"]:
    """Inner products [tokens, k] of every token's row with the table rows it names."""
    out = rows.new_empty(indices.shape)
    steps = _chunks(indices, rows.shape[1])
    for start in steps:
        part = slice(start, start + steps.step)
        out[part] = torch.einsum("nd,nkd->nk", rows[part], table[indices[part]])
    return out


def gather_sum(
    weights: Float[Tensor, "tokens k"], table: Float[Tensor, "latents width"], indices: Int[Tensor, "tokens k"]
) -> Float[Tensor, "tokens width"]:
    """Weighted sums [tokens, width] of the table rows that every token names."""
    out = table.new_empty(len(indices), table.shape[1])
    steps = _chunks(indices, table.shape[1])
    for start in steps:
        part = slice(start, start + steps.step)
        out[part] = torch.einsum("nk,nkd->nd", weights[part], table[indices[part]])
    return out


def scatter_rows(
    weights: Float[Tensor, "tokens k"],
    rows: Float[Tensor, "tokens width"],
    indices: Int[Tensor, "tokens k"],
    n_latents: int,
) -> Float[Tensor, "latents width"]:
    """For every latent the weighted sum [latents, width] of the rows of the tokens that name it."""
    dense = rows.new_zeros(len(rows), n_latents).scatter_add_(1, indices, weights)
    return dense.T @ rows


def top_k_indices(pre_acts: Float[Tensor, "tokens latents"], k: int) -> Int[Tensor, "tokens k"]:
    """Indices [tokens, k], ascending, of the k largest pre-activations of every token."""
    return pre_acts.topk(k, dim=1, sorted=False).indices.sort(dim=1).values


def in_pieces(
    rows: Float[Tensor, "tokens width"],
    table: Float[Tensor, "latents width"],
    bias: Float[Tensor, " latents"],
    *,
    bounds: Float[Tensor, " latents"] | None,
    k: int,
) -> Int[Tensor, "tokens columns"]:
    """`above_in_pieces` if there are bounds, else `largest_in_pieces`: for a table in another memory than the rows."""
    return largest_in_pieces(rows, table, bias, k) if bounds is None else above_in_pieces(rows, table, bias, bounds)


def largest_in_pieces(
    rows: Float[Tensor, "tokens width"], table: Float[Tensor, "latents width"], bias: Float[Tensor, " latents"], k: int
) -> Int[Tensor, "tokens k"]:
    """The latents [tokens, k], ascending, with the k largest rows . table + bias; pieces of the table come one by one."""
    values, latents = rows.new_empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)
    for part, pre_acts in _pieces(rows, table, bias):
        numbers = torch.arange(part.start, part.stop, device=rows.device).expand_as(pre_acts)
        values, latents = torch.cat([values, pre_acts], dim=1), torch.cat([latents, numbers], dim=1)
        top = values.topk(min(k, values.shape[1]), dim=1)
        values, latents = top.values, latents.gather(1, top.indices)
    return latents.sort(dim=1).values


def above_in_pieces(
    rows: Float[Tensor, "tokens width"],
    table: Float[Tensor, "latents width"],
    bias: Float[Tensor, " latents"],
    bounds: Float[Tensor, " latents"],
) -> Int[Tensor, "tokens columns"]:
    """`above` with rows . table + bias and a bound for every latent; pieces of the table come one by one."""
    pairs = []
    for part, pre_acts in _pieces(rows, table, bias):
        tokens, latents = (pre_acts > bounds[part]).nonzero(as_tuple=True)
        pairs.append(torch.stack([tokens, latents + part.start]))
    tokens, latents = torch.cat(pairs, dim=1)
    order = tokens.sort(stable=True).indices
    return by_token(tokens[order], latents[order], len(rows))


def _pieces(rows: Tensor, table: Tensor, bias: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(which latents, their pre-activations) for one piece of the table after another."""
    step = max(1, CHUNK_NUMBERS // max(1, len(rows)))
    for start in range(0, len(table), step):
        part = slice(start, min(start + step, len(table)))
        yield part, rows @ table[part].to(rows.device).T + bias[part]


def ragged(mask: Bool[Tensor, "tokens latents"]) -> Int[Tensor, "tokens width"]:
    """Indices [tokens, width] of the True entries of every row of `mask`, ascending, padded with -1."""
    tokens, latents = mask.nonzero(as_tuple=True)
    return by_token(tokens, latents, len(mask))


def by_token(
    tokens: Int[Tensor, " pairs"], latents: Int[Tensor, " pairs"], n_tokens: int
) -> Int[Tensor, "n_tokens width"]:
    """Pairs sorted by token as indices [n_tokens, width], padded with -1."""
    counts = torch.bincount(tokens, minlength=n_tokens)
    width = int(counts.max()) if len(counts) else 0
    out = torch.full((n_tokens, max(1, width)), -1, dtype=torch.int64, device=tokens.device)
    out[tokens, torch.arange(len(tokens), device=tokens.device) - (counts.cumsum(0) - counts)[tokens]] = latents
    return out


def above(
    pre_acts: Float[Tensor, "tokens latents"], threshold: Float[Tensor, ""] | Float[Tensor, " latents"] | float
) -> Int[Tensor, "tokens width"]:
    """Latents [tokens, width] with a pre-activation above the threshold (one, or one per latent), padded with -1."""
    return ragged(pre_acts.float() > threshold)


def batch_top_k(pre_acts: Float[Tensor, "tokens latents"], k: int) -> Int[Tensor, "tokens width"]:
    """Latents [tokens, width] of the tokens * k largest positive pre-activations of the whole batch, padded with -1."""
    flat = pre_acts.relu().reshape(-1)
    top = flat.topk(min(len(pre_acts) * k, flat.numel()), sorted=False)
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(0, top.indices, top.values > 0)
    return ragged(mask.view_as(pre_acts))


def norm_crossing(
    pre_acts: Float[Tensor, "tokens latents"], norm: Float[Tensor, " tokens"]
) -> Int[Tensor, "tokens width"]:
    """Latents [tokens, width] of every token's k(x) largest pre-activations, padded with -1.

    k(x) = 1 + argmin_j | sqrt(c_j) - norm | with c_j the sum of the j largest ReLU(pre_acts)^2. Ties in the argmin go
    to the smaller j, ties among latents to the smaller index. A latent at zero is never selected.
    """
    energy, order = pre_acts.relu().double().square().sort(dim=1, descending=True, stable=True)
    distance = (energy.cumsum(1).sqrt() - norm.double()[:, None]).abs()
    k = distance.argmin(1, keepdim=True) + 1
    is_kept = (torch.arange(energy.shape[1], device=energy.device) < k) & (energy > 0)
    return ragged(torch.zeros_like(is_kept).scatter(1, order, is_kept))
