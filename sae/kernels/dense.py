"""The sparse products through dense matrices: faster if a token keeps a large share of all latents."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.kernels.reference import scatter_rows


def gather_dot(
    rows: Float[Tensor, "tokens width"], table: Float[Tensor, "latents width"], indices: Int[Tensor, "tokens k"]
) -> Float[Tensor, "tokens k"]:
    """See `reference.gather_dot`."""
    return (rows @ table.T).gather(1, indices)


def gather_sum(
    weights: Float[Tensor, "tokens k"], table: Float[Tensor, "latents width"], indices: Int[Tensor, "tokens k"]
) -> Float[Tensor, "tokens width"]:
    """See `reference.gather_sum`."""
    return weights.new_zeros(len(weights), len(table)).scatter_add_(1, indices, weights) @ table


def product(a: Float[Tensor, "rows inner"], b: Float[Tensor, "inner columns"]) -> Float[Tensor, "rows columns"]:
    """a b, summed and returned in float32."""
    return a @ b if a.dtype == torch.float32 else torch.mm(a, b, out_dtype=torch.float32)


__all__ = ["gather_dot", "gather_sum", "product", "scatter_rows"]
