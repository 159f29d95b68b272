"""The sparse products on a CPU, and the selections that `sparse` differentiates through: no dense matrix, fixed sums."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numba import njit, prange
from torch import Tensor

from sae.kernels.reference import ragged

GROUP = 16


@njit(parallel=True, fastmath=True, cache=True)
def _gather_dot(rows, table, indices, out):  # pragma: no cover (compiled)
    for n in prange(indices.shape[0]):
        for j in range(indices.shape[1]):
            i = indices[n, j]
            total = np.float32(0.0)
            for d in range(rows.shape[1]):
                total += rows[n, d] * table[i, d]
            out[n, j] = total


def gather_dot(
    rows: Float[Tensor, "tokens width"], table: Float[Tensor, "latents width"], indices: Int[Tensor, "tokens k"]
) -> Float[Tensor, "tokens k"]:
    """See `reference.gather_dot`."""
    out = rows.new_empty(indices.shape)
    a, b, i = (t.detach().contiguous().numpy() for t in (rows, table, indices))
    _gather_dot(a, b, i, out.numpy())
    return out


def gather_sum(
    weights: Float[Tensor, "tokens k"], table: Float[Tensor, "latents width"], indices: Int[Tensor, "tokens k"]
) -> Float[Tensor, "tokens width"]:
    """See `reference.gather_sum`."""
    with torch.no_grad():
        return F.embedding_bag(indices, table, mode="sum", per_sample_weights=weights)


def scatter_rows(
    weights: Float[Tensor, "tokens k"],
    rows: Float[Tensor, "tokens width"],
    indices: Int[Tensor, "tokens k"],
    n_latents: int,
) -> Float[Tensor, "latents width"]:
    """See `reference.scatter_rows`: every latent is a bag of the tokens that name it."""
    flat = indices.reshape(-1)
    order = flat.argsort(stable=True)
    offsets = F.pad(torch.bincount(flat, minlength=n_latents).cumsum(0), (1, 0))
    tokens = torch.div(order, indices.shape[1], rounding_mode="floor")
    weights = weights.reshape(-1)[order]
    with torch.no_grad():
        return F.embedding_bag(tokens, rows, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


@njit(parallel=True, cache=True)
def _top_k(keys, k, out):  # pragma: no cover (compiled)
    n_groups = keys.shape[1] // GROUP
    for n in prange(keys.shape[0]):
        row = keys[n]
        maxima = np.empty(n_groups, keys.dtype)
        for g in range(n_groups):
            best = row[g * GROUP]
            for e in range(1, GROUP):
                best = max(best, row[g * GROUP + e])
            maxima[g] = best
        # k groups reach `bound`, so the k-th largest key does too: only such groups can hold a winner.
        bound = np.partition(maxima, n_groups - k)[n_groups - k]
        candidates = np.empty(row.size, np.int64)
        count = 0
        for g in range(n_groups):
            if maxima[g] >= bound:
                for e in range(g * GROUP, (g + 1) * GROUP):
                    if row[e] >= bound:
                        candidates[count] = e
                        count += 1
        values = np.empty(count, keys.dtype)
        for c in range(count):
            values[c] = row[candidates[c]]
        last = np.partition(values, count - k)[count - k]
        above = 0
        for c in range(count):
            above += values[c] > last
        ties, filled = k - above, 0
        for c in range(count):
            take = values[c] > last
            if values[c] == last and ties > 0:
                take = True
                ties -= 1
            if take:
                out[n, filled] = candidates[c]
                filled += 1


def top_k_indices(pre_acts: Float[Tensor, "tokens latents"], k: int) -> Int[Tensor, "tokens k"]:
    """Indices [tokens, k], ascending, of the k largest of ReLU(pre_acts); ties go to the smaller index.

    The bits of a float, read as a signed integer, order all positive numbers and put the negative ones below. Falls
    back to `torch.topk` if the row is too short for the group bound.
    """
    n_latents = pre_acts.shape[1]
    if n_latents % GROUP or k > n_latents // GROUP:
        return pre_acts.topk(k, dim=1, sorted=False).indices.sort(dim=1).values

    as_integers = pre_acts.contiguous().view(torch.int16 if pre_acts.dtype == torch.bfloat16 else torch.int32)
    out = torch.empty(len(pre_acts), k, dtype=torch.int64)
    _top_k(as_integers.numpy(), k, out.numpy())

    return out


@njit(cache=True)
def _cut_row(row, norm):  # pragma: no cover (compiled)
    """(bound, m, count): keep what is above `bound` and the first m at it, `count` in all. A weighted quickselect."""
    rest = row[row > 0].astype(np.float64)
    n_positive = len(rest)
    target, energy, taken = norm * norm, 0.0, 0

    while len(rest) > 0:
        pivot = rest[len(rest) // 2]
        over = rest[rest > pivot]
        n_at = np.sum(rest == pivot)
        energy_over = energy + np.sum(over * over)
        if energy_over >= target and len(over) > 0:
            rest = over
            continue
        if energy_over + n_at * pivot * pivot >= target:
            m = min(max(1, int(np.ceil((target - energy_over) / (pivot * pivot)))), n_at)
            short = norm - np.sqrt(energy_over + (m - 1) * pivot * pivot)
            if short <= np.sqrt(energy_over + m * pivot * pivot) - norm and taken + len(over) + m > 1:
                m -= 1
            return pivot, m, taken + len(over) + m
        energy = energy_over + n_at * pivot * pivot
        taken += len(over) + n_at
        rest = rest[rest < pivot]

    return 0.0, 0, n_positive  # the norm is never reached


@njit(parallel=True, cache=True)
def _cut(pre_acts, norm, least, n_equal, counts):  # pragma: no cover (compiled)
    for n in prange(len(pre_acts)):
        least[n], n_equal[n], counts[n] = _cut_row(pre_acts[n], norm[n])


@njit(parallel=True, cache=True)
def _fill(pre_acts, least, n_equal, out):  # pragma: no cover (compiled)
    for n in prange(len(pre_acts)):
        filled, equal = 0, 0
        for i in range(pre_acts.shape[1]):
            value = pre_acts[n, i]
            take = value > least[n] and value > 0
            if value == least[n] and equal < n_equal[n]:
                take = True
                equal += 1
            if take:
                out[n, filled] = i
                filled += 1


def norm_crossing(
    pre_acts: Float[Tensor, "tokens latents"], norm: Float[Tensor, " tokens"]
) -> Int[Tensor, "tokens width"]:
    """See `reference.norm_crossing`; finds the crossing without sorting a row."""
    values, n = pre_acts.float().contiguous().numpy(), len(pre_acts)
    least, n_equal, counts = np.empty(n, np.float64), np.empty(n, np.int64), np.empty(n, np.int64)
    _cut(values, norm.double().numpy(), least, n_equal, counts)
    out = np.full((n, max(1, int(counts.max(initial=0)))), -1, np.int64)
    _fill(values, least, n_equal, out)
    return torch.from_numpy(out)


@njit(parallel=True, cache=True)
def _count_above(pre_acts, threshold, counts):  # pragma: no cover (compiled)
    for n in prange(len(pre_acts)):
        total = 0
        for i in range(pre_acts.shape[1]):
            total += pre_acts[n, i] > threshold[i]
        counts[n] = total


@njit(parallel=True, cache=True)
def _fill_above(pre_acts, threshold, out):  # pragma: no cover (compiled)
    for n in prange(len(pre_acts)):
        filled = 0
        for i in range(pre_acts.shape[1]):
            if pre_acts[n, i] > threshold[i]:
                out[n, filled] = i
                filled += 1


def above(
    pre_acts: Float[Tensor, "tokens latents"], threshold: Float[Tensor, ""] | Float[Tensor, " latents"] | float
) -> Int[Tensor, "tokens width"]:
    """See `reference.above`."""
    values, n = pre_acts.float().contiguous().numpy(), len(pre_acts)
    bounds = torch.as_tensor(threshold, dtype=torch.float32).expand(pre_acts.shape[1]).contiguous().numpy()
    counts = np.empty(n, np.int64)
    _count_above(values, bounds, counts)
    out = np.full((n, max(1, int(counts.max(initial=0)))), -1, np.int64)
    _fill_above(values, bounds, out)
    return torch.from_numpy(out)


def batch_top_k(pre_acts: Float[Tensor, "tokens latents"], k: int) -> Int[Tensor, "tokens width"]:
    """See `reference.batch_top_k`. The bound is found first; ties at it go to the smaller (token, latent)."""
    flat = pre_acts.relu().float().reshape(-1)
    wanted = min(len(pre_acts) * k, flat.numel())
    bound = float(np.partition(flat.numpy(), flat.numel() - wanted)[flat.numel() - wanted])
    mask = flat > bound
    if bound > 0:
        at = (flat == bound).nonzero()[:, 0]
        mask[at[: wanted - int(mask.sum())]] = True
    return ragged(mask.view_as(pre_acts))


__all__ = [
    "above",
    "batch_top_k",
    "gather_dot",
    "gather_sum",
    "norm_crossing",
    "ragged",
    "scatter_rows",
    "top_k_indices",
]
