"""The sparse products through dense matrices: faster if a token keeps a large share of all latents."""

from __future__ import annotations

from torch import Tensor

from sae.kernels.reference import scatter_rows


def gather_dot(rows: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    """See `reference.gather_dot`."""
    return (rows @ table.T).gather(1, indices)


def gather_sum(weights: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    """See `reference.gather_sum`."""
    return weights.new_zeros(len(weights), len(table)).scatter_add_(1, indices, weights) @ table


__all__ = ["gather_dot", "gather_sum", "scatter_rows"]
