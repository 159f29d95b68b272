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
TWICE_ROUNDED = np.float32(2 * ROUNDING * 1.01)  # of a product with a bias, rounded once on the way or twice
SUM_ROUNDING = np.float32(2.0**-20)  # of the sum of a product and a bias in float32, with room to spare
GROUP = 32  # latents that are passed over together if none of them can be above
# Groups among whose maxima the k-th largest is looked for; more are a closer bound and more maxima. Counted in 16 bits.
FEWEST_GROUPS, GROUPS_FOR_EACH, MOST_LARGEST = 256, 8, 4095
TINY = np.float32(1e-30)  # a row of zeros stays one
ROWS, NUMBERS = 256, 1 << 22  # tokens whose products are held at a time, or as many as make so many numbers


@njit(fastmath=True, cache=True)
def _dot(row, weights):  # pragma: no cover (compiled)
    total = np.float32(0.0)
    for d in range(len(row)):
        total += row[d] * weights[d]
    return total


@njit(fastmath=True, cache=True)
def _squares(row, near):  # pragma: no cover (compiled)
    """(the square of a row's norm, that of its difference from `near`)."""
    total, missed = np.float32(0.0), np.float32(0.0)
    for d in range(len(row)):
        total += row[d] * row[d]
        missed += (row[d] - near[d]) * (row[d] - near[d])
    return total, missed


@njit(parallel=True, cache=True)
def _measure(rows, near, norms, misses):  # pragma: no cover (compiled)
    """Norms of rows, and of what rounding took from them; `near` are the bits of the rounded rows in 16 bits."""
    for n in prange(len(rows)):
        bits = near[n].astype(np.int32) << np.int32(16)
        norm, miss = _squares(rows[n], bits.view(np.float32))
        norms[n], misses[n] = np.sqrt(norm) * np.float32(1.0001), np.sqrt(miss)


@njit(fastmath=True, cache=True)
def _margin(product, loose, norm, offset):  # pragma: no cover (compiled)
    """What product + offset may be off by, summed in float32 after the product alone was rounded."""
    return abs(product) * LAST_ROUNDING + loose * norm + abs(offset) * SUM_ROUNDING


@njit(fastmath=True, cache=True)
def _ranges(products, loose, norms, offset, lows, highs):  # pragma: no cover (compiled)
    """For every group of latents the largest number that product + offset is at least, and at most."""
    m = len(products)
    for g in range(len(lows)):
        low, high = np.float32(-1e30), np.float32(-1e30)
        for i in range(g * GROUP, min((g + 1) * GROUP, m)):
            z = products[i] + offset[i]
            margin = _margin(products[i], loose, norms[i], offset[i])
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
                margin = _margin(z, loose, norms[i], offset[i])
                if z + margin + offset[i] > 0 and _dot(rows[n], table[i]) > -offset[i]:
                    latents[n, at] = i
                    at += 1
        counts[n] = at


@njit(cache=True)
def _kth_largest(numbers, k, low, high):  # pragma: no cover (compiled)
    """The k-th largest of some integers, which lie between low and high; by halving, because counting is vectorised."""
    one = numbers.dtype.type(1)
    while low < high:
        middle = (low + high + 1) >> 1
        bound, count = numbers.dtype.type(middle), numbers.dtype.type(0)
        for i in range(len(numbers)):
            count += one if numbers[i] >= bound else numbers.dtype.type(0)
        if count >= k:
            low = middle
        else:
            high = middle - 1
    return low


@njit(cache=True)
def _maxima(keys, n_groups):  # pragma: no cover (compiled)
    """The largest key of every group; group g holds the latents g, g + n_groups, ..., so that maxima are vectorised."""
    m = len(keys)
    maxima = keys[:n_groups].copy()
    for start in range(n_groups, m, n_groups):
        block = keys[start : start + n_groups]  # indices that are known to lie within, else nothing is vectorised
        for g in range(len(block)):
            maxima[g] = max(maxima[g], block[g])
    return maxima


@njit(cache=True)
def _ordered(bits):  # pragma: no cover (compiled)
    """Bits of a float in int32 as an integer of the same order, and back."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@njit(cache=True)
def _proposed(keys, cut, maxima, proposal, loose, least, names):  # pragma: no cover (compiled)
    """Writes the latents of a token that may reach `least`, among those whose keys reach `cut`; how many there are."""
    n_groups, count = len(maxima), 0
    bits = np.empty(1, np.int32)
    as_float = bits.view(np.float32)
    for g in range(n_groups):
        if maxima[g] >= cut:
            for i in range(g, len(keys), n_groups):
                if keys[i] >= cut:
                    bits[0] = _ordered(np.int32(keys[i]) << np.int32(16))
                    margin = (abs(as_float[0]) + abs(proposal.bias[i])) * TWICE_ROUNDED + loose * proposal.norms[i]
                    if as_float[0] + margin >= least:
                        names[count] = i
                        count += 1
    return count


@njit(parallel=True, cache=True)
def _largest(products, slack, proposal, rows, table, k, latents):  # pragma: no cover (compiled)
    m = products.shape[1]
    n_groups = min(m, max(FEWEST_GROUPS, GROUPS_FOR_EACH * k))
    for n in prange(len(products)):
        keys = np.empty(m, np.int16)
        for i in range(m):
            keys[i] = products[n, i] ^ ((products[n, i] >> np.int16(15)) & np.int16(0x7FFF))
        maxima = _maxima(keys, n_groups)

        # k latents have this product or more, so the k-th largest number is at least `least`; `cut` is the smallest
        # product that may stand for as much.
        bits = np.empty(1, np.int32)
        as_float = bits.view(np.float32)
        bits[0] = _ordered(np.int32(_kth_largest(maxima, k, -(1 << 15), (1 << 15) - 1)) << np.int32(16))
        margin = slack[n] * proposal.widest_norm + proposal.widest_bias * TWICE_ROUNDED
        least = as_float[0] - abs(as_float[0]) * TWICE_ROUNDED - margin
        as_float[0] = least - margin
        as_float[0] -= abs(as_float[0]) * 2 * TWICE_ROUNDED
        cut = _ordered(bits[0]) >> np.int32(16)

        names = np.empty(m, np.int32)
        count = _proposed(keys, cut, maxima, proposal, slack[n], least, names)
        names, values = np.sort(names[:count]), np.empty(count, np.float32)
        for c in range(count):
            values[c] = _dot(rows[n], table[names[c]]) + proposal.bias[names[c]]
        ranks = values.view(np.int32)
        for c in range(count):
            ranks[c] = _ordered(ranks[c])

        last = _kth_largest(ranks, k, -(1 << 31), (1 << 31) - 1)
        ties, at = k - np.sum(ranks > last), 0
        for c in range(count):
            is_tie = ranks[c] == last and ties > 0
            if ranks[c] > last or is_tie:
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
    # Memory is taken where something is written.
    latents = np.empty((min(_step(table), len(rows)), len(table)), np.int32)
    for part, (proposed, slack, norms) in _proposals(rows, table):
        products = proposed.float().numpy()
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

    Bounds are those of `above`, but that the bias is rounded, too: |z~ - z| is at most twice the rounding of |z~| + |bias|,
    and the slack. k must fit (`fits`). See `cpu.top_k_indices`.
    """
    rows, table, bias = rows.detach().contiguous(), table.detach(), bias.detach()
    latents = torch.arange(k).repeat(len(rows), 1)  # rows of no numbers keep these
    for part, (products, slack, norms) in _proposals(rows, table, bias):
        proposal = _Bounds(bias.numpy(), norms, norms.max(), np.float32(bias.abs().max()))
        keys = products.view(torch.int16).numpy()
        _largest(keys, slack, proposal, rows[part].numpy(), table.numpy(), k, latents[part].numpy())
    return latents


def fits(n_latents: int, k: int) -> bool:
    """Whether `largest` can choose k of so many."""
    return k <= min(MOST_LARGEST, -(-n_latents // GROUP))


class _Bounds(NamedTuple):
    """What proposals may be off by, beside a token's own slack: biases and norms [latents], and the largest of each."""

    bias: np.ndarray
    norms: np.ndarray
    widest_norm: np.float32
    widest_bias: np.float32


class _Proposal(NamedTuple):
    """Products [n, latents] of some rows by rounded numbers, and what they may be off by: slack [n] times norms [latents]."""

    products: Tensor
    slack: np.ndarray
    norms: np.ndarray


class _Rounded(NamedTuple):
    """Rows in bfloat16, the norms [n] of the exact rows, and of what rounding took from them."""

    rows: Tensor
    norms: np.ndarray
    misses: np.ndarray


def _rounded(rows: Tensor) -> _Rounded:
    near = rows.bfloat16()
    norms, misses = np.empty((2, len(rows)), np.float32)
    _measure(rows.numpy(), near.view(torch.int16).numpy(), norms, misses)
    return _Rounded(near, norms, misses)


def _step(table: Tensor) -> int:
    """How many tokens' products are held at a time."""
    return max(ROWS, NUMBERS // max(1, len(table)))


def _proposals(rows: Tensor, table: Tensor, bias: Tensor | None = None) -> Iterator[tuple[slice, _Proposal]]:
    """(which rows, their proposal) for one piece after another; products plus the rounded bias, if there is one."""
    latents, near = _rounded(table), _rounded(rows)
    norms = np.maximum(latents.norms + latents.misses, TINY)  # no smaller than those of the rounded rows
    widest_miss = float((latents.misses / norms).max())

    # ... and the rounding of sums in float32, here too
    relative = widest_miss + 2 * rows.shape[1] * 2.0**-24
    slack = ((near.misses * (1 + widest_miss) + near.norms * relative) * 1.01).astype(np.float32)
    offset = None if bias is None else bias.bfloat16()
    step = _step(table)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        piece = near.rows[part]
        products = piece @ latents.rows.T if offset is None else torch.addmm(offset, piece, latents.rows.T)
        yield part, _Proposal(products, slack[part], norms)
