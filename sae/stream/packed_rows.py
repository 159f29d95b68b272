"""Rows of activations in 8-bit codes, for storing them on disk at half the size."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class PackedRows(NamedTuple):
    """x[t, d] = code[t, d] row[t] column[d].

    column is the column's root mean square; row is the row's largest number after division by it, over 127. A few
    columns of a language model are far larger than the others, so one scale per row would round the others to nothing.
    """

    code: Int[Tensor, "rows width"]
    row: Float[Tensor, " rows"]
    column: Float[Tensor, " width"]

    @classmethod
    def of(cls, x: Float[Tensor, "rows width"]) -> PackedRows:
        """`x` [rows, width], rounded to the nearest code."""
        column = x.float().square().mean(0).sqrt().nan_to_num(1.0).clamp_min(1e-20)
        even = x.float() / column
        row = (even.abs().amax(1) / 127).clamp_min(1e-30)
        return cls((even / row[:, None]).round().to(torch.int8), row, column)

    def rows(self) -> Float[Tensor, "rows width"]:
        """The values of the codes, in bfloat16."""
        return (self.code.float() * self.row[:, None] * self.column).bfloat16()
