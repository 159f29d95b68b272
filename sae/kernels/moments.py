"""Adam's moments in fewer bits, in plain torch: what is stored, and what it stands for. The GPU's kernels do the same.

Rounding is stochastic: a number between two that can be stored becomes the upper or the lower one at random, so that
its mean is right. Rounded to the nearest, a second moment would stand still: it moves by a thousandth per update, and
the numbers of bfloat16 lie 0.4 to 0.8 % apart. The draw is a hash of the number's place and of the update, so that it
is the same every time.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from sae.kernels.step_types import WeightTable

DTYPES = {  # of the first and the second moment
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "int8": (torch.int8, torch.uint8),
}
LEVELS = {torch.int8: (127, 0), torch.uint8: (256, 1)}  # code c is ((c + second) / first)^4 of the row's largest number
WORD = 0xFFFFFFFF
CHUNK_NUMBERS = 1 << 20  # that are rounded at a time


def noise(n: int, update: int, device: torch.device, first: int = 0) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Two draws [0, 65536) for n places of a table from `first` on: the halves of a 32-bit hash of (place, update).

    Multiplications and shifts of Wellons' lowbias32 (2018, nullprogram.com/blog/2018/07/31).
    """
    x = torch.arange(first, first + n, device=device) & WORD
    x ^= update * 0x9E3779B1 & WORD
    x ^= x >> 16
    x = x * 0x7FEB352D & WORD
    x ^= x >> 15
    x = x * 0x846CA68B & WORD
    x ^= x >> 16

    return x & 0xFFFF, x >> 16


def widened(stored: Real[Tensor, "rows width"], scale: Float[Tensor, " rows"]) -> Float[Tensor, "rows width"]:
    """What a stored moment [rows, width] stands for, in float32; `scale` [rows] is used by 8-bit codes alone."""
    if stored.dtype not in LEVELS:
        return stored.float()
    levels, shift = LEVELS[stored.dtype]
    share = ((stored.float().abs() + shift) * (1 / levels)).square().square()
    return share.copysign(stored.float()) * scale[:, None]


def narrow(
    value: Float[Tensor, "rows width"],
    stored: Real[Tensor, "rows width"],
    scale: Float[Tensor, " rows"],
    draw: Int[Tensor, "rows width"],
) -> None:
    """Rounds a moment [rows, width] in float32 into `stored`; for 8-bit codes `scale` gets the largest number of every
    row.

    Codes are finer near 0, because the numbers of a row differ by orders of magnitude. The code of a second moment is
    never 0: an update would divide by it. Dettmers et al. 2022 (arXiv 2110.02861) keep blocks of codes with a scale in
    the same way, with a table in place of the fourth power and without stochastic rounding.
    """
    if stored.dtype == torch.bfloat16:
        bits = (value.view(torch.int32).long() & WORD) + draw >> 16
        stored.copy_(torch.where(bits > 0x7FFF, bits - 0x10000, bits).short().view(torch.bfloat16))
    else:
        (levels, shift), most = LEVELS[stored.dtype], torch.iinfo(stored.dtype).max
        scale.copy_(value.abs().amax(1))
        share = value.abs() * scale.clamp_min(torch.finfo(torch.float32).tiny).reciprocal()[:, None]
        code = (share.sqrt().sqrt() * levels).floor().sub(shift).clamp(0, most - 1)
        below, above = (((code + shift + i) * (1 / levels)).square().square() for i in (0, 1))
        code += share - below > (draw + 0.5) / 65_536 * (above - below)
        stored.copy_(code.copysign(value))


def rounded(value: Float[Tensor, "m d"], dtype: torch.dtype, update: int) -> Float[Tensor, "m d"]:
    """A table of float32 in `dtype`: itself, or in bfloat16, rounded at random at update number `update`."""
    if dtype == torch.float32:
        return value
    out = torch.empty_like(value, dtype=dtype)
    draw, _ = noise(value.numel(), update, value.device)
    narrow(value, out, value.new_empty(len(value)), draw.view_as(value))
    return out


def both_widened(table: WeightTable) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]]:
    """Both moments of a table, in float32; no copy if they are stored so."""
    scales = _scales(table)
    return widened(table.first_moment, scales[:, 0]), widened(table.second_moment, scales[:, 1])


def narrow_both(mean: Float[Tensor, "m d"], square: Float[Tensor, "m d"], table: WeightTable, update: int) -> None:
    """Rounds both moments in float32 into a table, at update number `update`."""
    if table.first_moment.dtype == torch.float32:
        return
    (n, width), scales = mean.shape, _scales(table)
    step = max(1, CHUNK_NUMBERS // width)
    for first in range(0, n, step):
        part = slice(first, min(first + step, n))
        draws = noise((part.stop - first) * width, update, mean.device, first * width)
        for number, (value, stored) in enumerate(((mean, table.first_moment), (square, table.second_moment))):
            narrow(value[part].contiguous(), stored[part], scales[part, number], draws[number].view(-1, width))


def _scales(table: WeightTable) -> Tensor:
    """The table's scales, or a scratch tensor that nothing reads."""
    return table.moment_scales if len(table.moment_scales) else table.weights.new_empty(len(table.first_moment), 2)
