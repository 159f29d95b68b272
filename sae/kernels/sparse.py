"""Differentiable encode and decode of chosen latents, on the kernels that suit the device."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sae.kernels import reference


def kernels_for(tensor: Tensor, selection: bool = False) -> ModuleType:
    """The module of kernels for a tensor: those of a CPU for float32 (and bfloat16 selection), else plain torch."""
    dtypes = (torch.float32, torch.bfloat16) if selection else (torch.float32,)
    if tensor.device.type == "cpu" and tensor.dtype in dtypes:
        from sae.kernels import cpu

        return cpu
    return reference


class _GatherDot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(rows, table, indices)
        return kernels_for(rows).gather_dot(rows, table, indices)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, table, indices = ctx.saved_tensors
        use = kernels_for(rows)
        grad = grads[0].contiguous()
        to_rows = use.gather_sum(grad, table, indices) if ctx.needs_input_grad[0] else None
        to_table = use.scatter_rows(grad, rows, indices, len(table)) if ctx.needs_input_grad[1] else None
        return to_rows, to_table, None


class _GatherSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, table: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(weights, table, indices)
        return kernels_for(table).gather_sum(weights, table, indices)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weights, table, indices = ctx.saved_tensors
        use = kernels_for(table)
        grad = grads[0].contiguous()
        to_weights = use.gather_dot(grad, table, indices) if ctx.needs_input_grad[0] else None
        to_table = use.scatter_rows(weights, grad, indices, len(table)) if ctx.needs_input_grad[1] else None
        return to_weights, to_table, None


def gather_dot(rows: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    """Inner products [tokens, k] of every token's row with the table rows it names; gradients to both."""
    return _GatherDot.apply(rows, table, indices)  # pyright: ignore[reportReturnType]


def gather_sum(weights: Tensor, table: Tensor, indices: Tensor) -> Tensor:
    """Weighted sums [tokens, width] of the table rows that every token names; gradients to both."""
    return _GatherSum.apply(weights, table, indices)  # pyright: ignore[reportReturnType]
