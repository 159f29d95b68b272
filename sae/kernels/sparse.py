"""Differentiable encode and decode of chosen latents, on the kernels that suit the device."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.kernels import dense, reference

HAS_TRITON = importlib.util.find_spec("triton") is not None
NARROW, WIDER = 64, 4  # latents of a token with few; how many times as many the next group has
DENSE_SHARE = {"cpu": 0.25, "cuda": 0.012}  # a token that keeps more of the latents is multiplied densely


def selection_for(tensor: Float[Tensor, "tokens latents"]) -> ModuleType:
    """The module of selections for these pre-activations: numba on a CPU, Triton on a GPU, else plain torch."""
    if tensor.device.type == "cuda" and HAS_TRITON:
        from sae.kernels import cuda_selection

        return cuda_selection
    if tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.bfloat16):
        from sae.kernels import cpu

        return cpu
    return reference


def products_for(table: Float[Tensor, "latents width"], indices: Int[Tensor, "tokens k"]) -> ModuleType:
    """The module of sparse products for a table [latents, width] and the latents [tokens, k] of every token."""
    if indices.shape[1] > DENSE_SHARE.get(table.device.type, 1.0) * len(table):
        return dense
    if table.device.type == "cpu" and table.dtype == torch.float32:
        from sae.kernels import cpu

        return cpu
    return reference


def is_elsewhere(table: Float[Tensor, "latents width"], rows: Float[Tensor, " ..."]) -> bool:
    """Whether a table stays in the host's memory because the GPU of the rows does not hold it."""
    return table.device != rows.device


def rows_of(table: Float[Tensor, "latents width"], latents: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
    """table[latents] on the device of `latents`, wherever the table lies."""
    return table[latents.to(table.device)].to(latents.device)


def _brought(table: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """(the rows that are named, on the device of the indices; their numbers among these)."""
    distinct, numbers = indices.unique(return_inverse=True)
    return rows_of(table, distinct), numbers


class _GatherDot(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Float[Tensor, "tokens width"],
        table: Float[Tensor, "latents width"],
        indices: Int[Tensor, "tokens k"],
    ) -> Float[Tensor, "tokens k"]:
        ctx.save_for_backward(rows, table, indices)
        return products_for(table, indices).gather_dot(rows, table, indices)

    @staticmethod
    def backward(
        ctx: Any, *grads: Float[Tensor, "tokens k"]
    ) -> tuple[Float[Tensor, "tokens width"] | None, Float[Tensor, "latents width"] | None, None]:
        """The gradients of both floating inputs."""
        rows, table, indices = ctx.saved_tensors
        use = products_for(table, indices)
        grad = grads[0].contiguous()
        to_rows = use.gather_sum(grad, table, indices) if ctx.needs_input_grad[0] else None
        to_table = use.scatter_rows(grad, rows, indices, len(table)) if ctx.needs_input_grad[1] else None
        return to_rows, to_table, None


class _GatherSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weights: Float[Tensor, "tokens k"],
        table: Float[Tensor, "latents width"],
        indices: Int[Tensor, "tokens k"],
    ) -> Float[Tensor, "tokens width"]:
        ctx.save_for_backward(weights, table, indices)
        return products_for(table, indices).gather_sum(weights, table, indices)

    @staticmethod
    def backward(
        ctx: Any, *grads: Float[Tensor, "tokens width"]
    ) -> tuple[Float[Tensor, "tokens k"] | None, Float[Tensor, "latents width"] | None, None]:
        """The gradients of both floating inputs."""
        weights, table, indices = ctx.saved_tensors
        use = products_for(table, indices)
        grad = grads[0].contiguous()
        to_weights = use.gather_dot(grad, table, indices) if ctx.needs_input_grad[0] else None
        to_table = use.scatter_rows(weights, grad, indices, len(table)) if ctx.needs_input_grad[1] else None
        return to_weights, to_table, None


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, vector: Float[Tensor, " latents"], indices: Int[Tensor, "tokens k"]
    ) -> Float[Tensor, "tokens k"]:
        ctx.save_for_backward(indices)
        ctx.length = len(vector)
        return vector[indices]

    @staticmethod
    def backward(ctx: Any, *grads: Float[Tensor, "tokens k"]) -> tuple[Float[Tensor, " latents"], None]:
        """The gradient of the vector."""
        (indices,) = ctx.saved_tensors
        grad = grads[0]
        # The gradient of plain indexing adds duplicates one by one: 200 ms an update, where thousands of tokens name a
        # latent.
        if grad.device.type == "cpu":
            summed = torch.bincount(indices.flatten(), grad.flatten(), ctx.length).to(grad.dtype)
        else:  # row by row, so that the order of the sum is fixed
            summed = grad.new_zeros(len(grad), ctx.length).scatter_add_(1, indices, grad).sum(0)
        return summed, None


def pick(vector: Float[Tensor, " latents"], indices: Int[Tensor, "tokens k"]) -> Float[Tensor, "tokens k"]:
    """vector[indices] [tokens, k]; its gradient stays fast if many tokens name the same latent."""
    return _Pick.apply(vector, indices)  # pyright: ignore[reportReturnType]


def gather_dot(
    rows: Float[Tensor, "tokens width"], table: Float[Tensor, "latents width"], indices: Int[Tensor, "tokens k"]
) -> Float[Tensor, "tokens k"]:
    """Inner products [tokens, k] of every token's row with the table rows it names; gradients to both.

    Of a table elsewhere (`is_elsewhere`) the named rows are brought, here and in `gather_sum`.
    """
    if is_elsewhere(table, rows):
        table, indices = _brought(table, indices)
    return _GatherDot.apply(rows, table, indices)  # pyright: ignore[reportReturnType]


def ragged_dot(
    rows: Float[Tensor, "tokens width"],
    table: Float[Tensor, "latents width"],
    bias: Float[Tensor, " latents"],
    indices: Int[Tensor, "tokens k"],
) -> Float[Tensor, "tokens k"]:
    """`gather_dot` plus the bias of each latent; 0 in the places of indices padded with -1 at the end of a row.

    Rows are as wide as the token with most latents. Tokens with few are taken apart from those with many.
    """
    width, n_latents = indices.shape[1], (indices >= 0).sum(1)
    dots = rows.new_zeros(indices.shape)
    fewest, most = 0, NARROW
    while fewest < width:
        tokens = ((n_latents > fewest) & (n_latents <= most)).nonzero()[:, 0]
        is_padding = indices[tokens, :most] < 0
        latents = indices[tokens, :most].clamp_min(0)
        values = gather_dot(rows[tokens], table, latents) + pick(bias, latents)
        dots[tokens, :most] = values.masked_fill(is_padding, 0)
        fewest, most = most, most * WIDER
    return dots


def gather_sum(
    weights: Float[Tensor, "tokens k"], table: Float[Tensor, "latents width"], indices: Int[Tensor, "tokens k"]
) -> Float[Tensor, "tokens width"]:
    """Weighted sums [tokens, width] of the table rows that every token names; gradients to both."""
    if is_elsewhere(table, weights):
        table, indices = _brought(table, indices)
    return _GatherSum.apply(weights, table, indices)  # pyright: ignore[reportReturnType]
