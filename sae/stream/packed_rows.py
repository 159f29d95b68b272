"""Rows of activations in 8-bit codes, for keeping them on disk at half the size."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PackedRows(NamedTuple):
    """x[t, d] is code[t, d] row[t] column[d]: the column's root mean square, and the largest number of the row after division
    by it, over 127. A few columns of a language model are far larger than the others, so one scale for a whole row would leave
    those nothing."""

    code: Tensor
    row: Tensor
    column: Tensor

    @classmethod
    def of(cls, x: Tensor) -> PackedRows:
        """`x` [rows, width], rounded to the nearest code."""
        column = x.float().square().mean(0).sqrt().nan_to_num(1.0).clamp_min(1e-20)
        even = x.float() / column
        row = (even.abs().amax(1) / 127).clamp_min(1e-30)
        return cls((even / row[:, None]).round().to(torch.int8), row, column)

    def rows(self) -> Tensor:
        """What the codes stand for, in bfloat16."""
        return (self.code.float() * self.row[:, None] * self.column).bfloat16()
