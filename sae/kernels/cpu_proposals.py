"""Which latents are largest or above their bounds on a CPU: a product in bfloat16 proposes them, float32 decides.

The whole product in float32 costs most of an encoding. In bfloat16 it is faster where the CPU has such instructions, and
what it is off by has a bound, so that no latent is missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit, prange
from torch import Tensor

ROUNDING = 2.0**-8  # relative error of a number rounded to bfloat16
LAST_ROUNDING = np.float32(ROUNDING * 1.01)  # of a sum that is rounded to bfloat16, as a share of what comes out
SUM_ROUNDING = np.float32(2.0**-20)  # of the sum of a product and a bias in float32, with room to spare
GROUP = 32  # latents that are passed over together if none of them can be above
PIECE, TINY = 4096, 1e-30  # rows of a table that are measured at a time; a row of zeros stays one
ROWS = 256  # tokens whose pre-activations lie in the cache at a time


@njit(fastmath=True, cache=True)
def _dot(row, weights):  # pragma: no cover (compiled)
    total = np.float32(0.0)
    for d in range(len(row)):
        total += row[d] * weights[d]
    return total


@njit(fastmath=True, cache=True)
def _ranges(products, loose, norms, offset, lows, highs):  # pragma: no cover (compiled)
    """For every group of latents the largest number that product + offset is at least, and at most."""
    m = len(products)
    for g in range(len(lows)):
        low, high = np.float32(-1e30), np.float32(-1e30)
        for i in range(g * GROUP, min((g + 1) * GROUP, m)):
            z = products[i] + offset[i]
            margin = abs(products[i]) * LAST_ROUNDING + loose * norms[i] + abs(offset[i]) * SUM_ROUNDING
            low, high = max(low, z - margin), max(high, z + margin)
        lows[g], highs[g] = low, high


@njit(parallel=True, cache=True)
def _decide(products, slack, norms, offset, rows, table, latents, counts):  # pragma: no cover (compiled)
    m = products.shape[1]
    n_groups = (m + GROUP - 1) // GROUP
    for n in prange(len(products)):
        loose, at = slack[n], 0
        lows, highs = np.empty(n_groups, np.float32), np.empty(n_groups, np.float32)
        _ranges(products[n], loose, norms, offset, lows, highs)
        for g in range(n_groups):
            if highs[g] <= 0:
                continue
            for i in range(g * GROUP, min((g + 1) * GROUP, m)):
                z = products[n, i]
                margin = abs(z) * LAST_ROUNDING + loose * norms[i] + abs(offset[i]) * SUM_ROUNDING
                if z + margin + offset[i] > 0 and _dot(rows[n], table[i]) > -offset[i]:
                    latents[n, at] = i
                    at += 1
        counts[n] = at


@njit(parallel=True, cache=True)
def _largest(products, slack, norms, bias, rows, table, k, latents):  # pragma: no cover (compiled)
    m = products.shape[1]
    n_groups = (m + GROUP - 1) // GROUP
    for n in prange(len(products)):
        loose = slack[n]
        lows, highs = np.empty(n_groups, np.float32), np.empty(n_groups, np.float32)
        _ranges(products[n], loose, norms, bias, lows, highs)
        # A latent of each of k groups is at least this large, so what cannot be as large is none of the k largest.
        least = np.partition(lows, n_groups - k)[n_groups - k]

        names, values, count = np.empty(m, np.int32), np.empty(m, np.float32), 0
        for g in range(n_groups):
            if highs[g] < least:
                continue
            for i in range(g * GROUP, min((g + 1) * GROUP, m)):
                z = products[n, i]
                margin = abs(z) * LAST_ROUNDING + loose * norms[i] + abs(bias[i]) * SUM_ROUNDING
                if z + margin + bias[i] >= least:
                    names[count], values[count] = i, _dot(rows[n], table[i]) + bias[i]
                    count += 1

        last = np.partition(values[:count], count - k)[count - k]
        ties, at = k - np.sum(values[:count] > last), 0
        for c in range(count):
            is_tie = values[c] == last and ties > 0
            if values[c] > last or is_tie:
                ties -= is_tie
                latents[n, at] = names[c]
                at += 1


def above(
    rows: Float[Tensor, "tokens width"],
    table: Float[Tensor, "latents width"],
    bias: Float[Tensor, " latents"],
    bounds: Float[Tensor, " latents"],
) -> Int[Tensor, "tokens k"]:
    """Latents [tokens, k] with rows . table + bias > bounds in float32, ascending, padded with -1.

    With x~ and w~ of `width` numbers rounded to bfloat16, the product summed in float32 and rounded once more to z~,
    |z~ - x . w| <= ||x - x~|| ||w~|| + ||x|| ||w - w~|| + 2 width 2^-24 ||x|| ||w|| + |z~| 2^-8 / (1 - 2^-8), by the
    inequality of Cauchy and Schwarz. What could be above its bound is computed again in float32. See `reference.above`.
    """
    rows, table, offset = rows.detach().contiguous(), table.detach(), (bias - bounds).detach().numpy()
    counts, pieces = np.zeros(len(rows), np.int64), []
    latents = np.empty((min(ROWS, len(rows)), len(table)), np.int32)  # memory is taken where something is written
    for part, proposal in _proposals(rows, table):
        products, slack, norms = proposal
        _decide(products, slack, norms, offset, rows[part].numpy(), table.numpy(), latents, counts[part])
        pieces += [row[:n].copy() for row, n in zip(latents, counts[part], strict=False)]

    out = np.full((len(rows), max(1, int(counts.max(initial=0)))), -1, np.int64)
    for row, piece in zip(out, pieces, strict=True):
        row[: len(piece)] = piece
    return torch.from_numpy(out)


def largest(
    rows: Float[Tensor, "tokens width"], table: Float[Tensor, "latents width"], bias: Float[Tensor, " latents"], k: int
) -> Int[Tensor, "tokens k"]:
    """The latents [tokens, k], ascending, with the k largest rows . table + bias in float32; ties go to the smaller one.

    k is at most the number of groups of `GROUP` latents (`fits`); bounds are those of `above`. See `cpu.top_k_indices`.
    """
    rows, table, offset = rows.detach().contiguous(), table.detach(), bias.detach().numpy()
    latents = np.empty((len(rows), k), np.int64)
    for part, (products, slack, norms) in _proposals(rows, table):
        _largest(products, slack, norms, offset, rows[part].numpy(), table.numpy(), k, latents[part])
    return torch.from_numpy(latents)


def fits(n_latents: int, k: int) -> bool:
    """Whether `largest` can choose k of so many."""
    return k <= -(-n_latents // GROUP)


class _Proposal(NamedTuple):
    """Products [n, latents] of some rows by rounded numbers, and what they may be off by: slack [n] times norms [latents]."""

    products: np.ndarray
    slack: np.ndarray
    norms: np.ndarray


def _proposals(rows: Tensor, table: Tensor) -> Iterator[tuple[slice, _Proposal]]:
    """(which rows, their proposal) for `ROWS` after `ROWS` of them."""
    rounded, widest_miss = table.bfloat16(), 0.0
    norms = torch.empty(len(table))
    for start in range(0, len(table), PIECE):  # not the whole table a second time in float32
        part = slice(start, start + PIECE)
        exact, near = table[part], rounded[part].float()
        norms[part] = torch.maximum(exact.norm(dim=1), near.norm(dim=1)).clamp_min(TINY)
        widest_miss = max(widest_miss, float(((exact - near).norm(dim=1) / norms[part]).max()))

    near = rows.bfloat16()
    length, miss = rows.norm(dim=1), (rows - near.float()).norm(dim=1)
    # ... and the rounding of sums in float32, here too
    slack = ((miss + length * (widest_miss + 2 * rows.shape[1] * 2.0**-24) + miss * widest_miss) * 1.01).numpy()
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        yield part, _Proposal((near[part] @ rounded.T).float().numpy(), slack[part], norms.numpy())
