"""Which latents are above their bounds on a CPU: a product in bfloat16 proposes them, float32 decides.

The whole product in float32 costs most of an encoding. In bfloat16 it is many times faster where the CPU has such
instructions, and what it is off by has a bound, so that no latent is missed.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit, prange
from torch import Tensor

from sae.foundation.device import has_bfloat16_products

ROUNDING = 2.0**-8  # relative error of a number rounded to bfloat16
LAST_ROUNDING = np.float32(ROUNDING * 1.01)  # of a sum that is rounded to bfloat16, as a share of what comes out
GROUP = 32  # latents that are passed over together if none of them can be above
ROWS = 256  # tokens whose pre-activations lie in the cache at a time


@njit(fastmath=True, cache=True)
def _dot(row, weights):  # pragma: no cover (compiled)
    total = np.float32(0.0)
    for d in range(len(row)):
        total += row[d] * weights[d]
    return total


@njit(parallel=True, fastmath=True, cache=True)
def _decide(products, slack, norms, offset, rows, table, latents, counts):  # pragma: no cover (compiled)
    m = products.shape[1]
    for n in prange(len(products)):
        at, loose = 0, slack[n]
        for start in range(0, m, GROUP):
            most = np.float32(-1e30)
            for i in range(start, min(start + GROUP, m)):
                z = products[n, i]
                most = max(most, z + abs(z) * LAST_ROUNDING + loose * norms[i] - offset[i])
            if most <= 0:
                continue
            for i in range(start, min(start + GROUP, m)):
                z = products[n, i]
                if z + abs(z) * LAST_ROUNDING + loose * norms[i] > offset[i] and _dot(rows[n], table[i]) > offset[i]:
                    latents[n, at] = i
                    at += 1
        counts[n] = at


def suits(table: Float[Tensor, "latents width"]) -> bool:
    """Whether proposals are of use for a table [latents, width]: in float32 on a CPU that multiplies bfloat16 numbers."""
    return table.device.type == "cpu" and table.dtype == torch.float32 and has_bfloat16_products()


def above(
    rows: Float[Tensor, "tokens width"],
    table: Float[Tensor, "latents width"],
    bias: Float[Tensor, " latents"],
    bounds: Float[Tensor, " latents"],
) -> Int[Tensor, "tokens k"]:
    """Latents [tokens, k] with rows . table + bias > bounds in float32, ascending, padded with -1.

    With x and w of `width` numbers rounded to bfloat16 (u = 2^-8), the product summed in float32 and rounded once more,
    |z~ - x . w| <= (2 u + u^2 + 2 width 2^-24) ||x|| ||w|| + u / (1 - u) |z~|, by the inequality of Cauchy and Schwarz. What
    could be above its bound is computed again in float32. See `reference.above`.
    """
    rows, table, bias, bounds = (tensor.detach() for tensor in (rows, table, bias, bounds))
    share = (2 * ROUNDING + ROUNDING**2 + 2 * rows.shape[1] * 2.0**-24) * 1.01  # and the rounding of the sums here
    slack = (rows.norm(dim=1) * share).numpy()
    norms, offset = table.norm(dim=1).numpy(), (bounds - bias).numpy()
    rounded, weights, row_values = table.bfloat16(), table.contiguous().numpy(), rows.contiguous().numpy()

    counts, pieces = np.zeros(len(rows), np.int64), []
    latents = np.empty((min(ROWS, len(rows)), len(table)), np.int32)  # memory is taken where something is written
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        products = (rows[part].bfloat16() @ rounded.T).float().numpy()
        _decide(products, slack[part], norms, offset, row_values[part], weights, latents, counts[part])
        pieces += [row[:n].copy() for row, n in zip(latents, counts[part], strict=False)]

    out = np.full((len(rows), max(1, int(counts.max(initial=0)))), -1, np.int64)
    for row, piece in zip(out, pieces, strict=True):
        row[: len(piece)] = piece
    return torch.from_numpy(out)
