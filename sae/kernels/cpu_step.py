"""The training step of a dictionary on a CPU, in numba: in float32, in a fixed order of sums; satisfies `StepKernels`."""

# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit, prange
from torch import Tensor

from sae.kernels import moments
from sae.kernels.cpu_selection import batch_pairs, encode, fits_groups, top_k, values_at
from sae.kernels.step_types import (
    AdamStep,
    AuxGradients,
    Decoded,
    DecodeInput,
    ParameterState,
    PreparedRows,
    RowSums,
    WeightTable,
)

DTYPE = torch.float32  # of stored rows


def _floats(adam: AdamStep) -> np.ndarray:
    """[rate, root, beta1, beta2, eps, 1 - beta1, 1 - beta2] in float32."""
    rate, root, *_ = adam.numbers.tolist()
    return np.array([rate, root, adam.beta1, adam.beta2, adam.eps, 1 - adam.beta1, 1 - adam.beta2], np.float32)


@contextmanager
def _as_floats(table: WeightTable, adam: AdamStep) -> Iterator[list[np.ndarray]]:
    """[weights, first moment, second moment] in float32, to be changed in place.

    After the block, moments in fewer bits and the rounded weights are written again.
    """
    first_moment, second_moment = moments.both_widened(table)
    yield [t.numpy() for t in (table.weights, first_moment, second_moment)]
    moments.narrow_both(first_moment, second_moment, table, int(adam.numbers[4]))
    if table.rounded.data_ptr() != table.weights.data_ptr():
        table.rounded.copy_(table.weights)


def widest(n_latents: int) -> int:
    """The most latents per token; above it dense products are faster."""
    return max(1, n_latents // 4)


def numbers(n: int, device: torch.device) -> Int[Tensor, " n"]:
    """0 .. n - 1."""
    return torch.arange(n, device=device)


def rounded(table: Float[Tensor, "m d"], selection_dtype: torch.dtype) -> Float[Tensor, "m d"]:
    """The table [m, d] as the encoder's product reads it: itself, or a copy in bfloat16."""
    return table.to(selection_dtype)


def prepare(raw: Float[Tensor, "n d"], scale: Float[Tensor, " d"], centre: Float[Tensor, " d"]) -> PreparedRows:
    """(raw * scale, that minus `centre`, squared norms [tokens] of the first)."""
    target = raw * scale
    return PreparedRows(target, target - centre, target.square().sum(1))


def row_times(row: Float[Tensor, " n"], table: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """row [n] times a table [n, width], in float32."""
    return row.float() @ table.float()


@njit(fastmath=True, cache=True)
def _dot(a, b):  # pragma: no cover (compiled)
    """The inner product. Only inner products may use fastmath: numba contracts anything else differently when it
    compiles and when
    it reads its cache, so bits would differ between the two.
    """
    total = np.float32(0)
    for d in range(len(a)):
        total += a[d] * b[d]
    return total


@njit(parallel=True, cache=True)
def _decode(
    values, indices, table, bias, target, coefficient, levels, rectify, acts, grad_acts, error, by_token
):  # pragma: no cover (compiled)
    n_levels, _, width = error.shape
    for n in prange(len(values)):
        e = bias - target[n]
        squares, prefix_squares, count = np.float32(0), np.float32(0), 0
        for level in range(n_levels):
            for j in range(values.shape[1]):
                act = values[n, j]
                if levels[indices[n, j]] == level:
                    if rectify and act < 0:
                        act = np.float32(0)
                    acts[n, j] = act
                    count += act > 0
                    if act != 0:
                        row = table[indices[n, j]]
                        for d in range(width):
                            e[d] += act * row[d]
            error[level, n] = e
            squares = _dot(e, e)
            prefix_squares += squares
        for level in range(n_levels - 2, -1, -1):
            for d in range(width):
                error[level, n, d] += error[level + 1, n, d]
        for j in range(values.shape[1]):
            total = np.float32(0)
            if acts[n, j] > 0 or not rectify:
                total = _dot(table[indices[n, j]], error[levels[indices[n, j]], n])
            grad_acts[n, j] = total * coefficient
        by_token[0, n], by_token[1, n], by_token[2, n] = squares, prefix_squares, count


def _level_of_latent(n_latents: int, prefixes: Tensor | None) -> np.ndarray:
    """The first prefix that contains each latent, [m]."""
    levels = np.zeros(n_latents, np.int32)
    for end in [] if prefixes is None else prefixes[:-1].tolist():
        levels[end:] += 1
    return levels


def decode(
    values: Float[Tensor, "n k"], decoding: DecodeInput, rectify: bool = True, error_dtype: torch.dtype = torch.float32
) -> Decoded:
    """See `cuda_step.decode`; the code is padded, and all rows count."""
    latents, table, bias, target, coefficient, _, prefixes, _ = decoding
    n_levels = 1 if prefixes is None else len(prefixes)
    acts, grad_acts = torch.empty_like(values), torch.empty_like(values)
    error, by_token = torch.empty(n_levels, *target.shape, dtype=error_dtype), torch.empty(3, len(values))
    _decode(
        values.detach().numpy(), latents.numpy(), table.numpy(), bias.detach().numpy(), target.numpy(),
        np.float32(coefficient), _level_of_latent(len(table), prefixes), rectify,
        acts.numpy(), grad_acts.numpy(), error.numpy(), by_token.numpy(),
    )  # fmt: skip

    return Decoded(acts, grad_acts, error, by_token)


@njit(cache=True)
def _sort(indices, n_latents, offsets, order):  # pragma: no cover (compiled)
    for i in indices:
        if i < n_latents:
            offsets[i + 1] += 1

    for i in range(n_latents):
        offsets[i + 1] += offsets[i]

    place = offsets.copy()
    for p in range(len(indices)):
        i = indices[p]
        if i < n_latents:
            order[place[i]] = p
            place[i] += 1


class SortedPairs:
    """The (token, latent) pairs of a batch sorted by latent; padding is named `n_latents`."""

    def __init__(self, latents: Int[Tensor, "n k"], n_latents: int):
        self.offsets, self.order = np.zeros(n_latents + 1, np.int64), np.empty(latents.numel(), np.int64)
        _sort(latents.reshape(-1).numpy(), n_latents, self.offsets, self.order)


def sorted_pairs(latents: Int[Tensor, "n k"], n_latents: int, tokens: Int[Tensor, " p"] | None = None) -> SortedPairs:
    """The pairs sorted by latent."""
    return SortedPairs(latents, n_latents)


@njit(parallel=True, cache=True)
def _latents(offsets, order, acts, grad_acts, n_tokens, gradient, since):  # pragma: no cover (compiled)
    for i in prange(len(since)):
        total, fired = np.float32(0), False
        for p in range(offsets[i], offsets[i + 1]):
            total += grad_acts[order[p]]
            fired |= acts[order[p]] > 0
        gradient[i] = total
        since[i] = 0 if fired else since[i] + n_tokens


@njit(parallel=True, cache=True)
def _vector(weights, mean, square, gradient, adam):  # pragma: no cover (compiled)
    for i in prange(len(weights)):
        m = adam[2] * mean[i] + adam[5] * gradient[i]
        v = adam[3] * square[i] + adam[6] * gradient[i] * gradient[i]
        mean[i], square[i] = m, v
        weights[i] -= adam[0] * m / (np.sqrt(v) * adam[1] + adam[4])


def update_vector(state: ParameterState, gradient: Float[Tensor, " n"], adam: AdamStep) -> None:
    """Adam on a vector (weights and both moments), in place."""
    weights, first_moment, second_moment = (t.numpy() for t in state)
    _vector(weights, first_moment, second_moment, gradient.contiguous().numpy(), _floats(adam))


def bias_gradient_and_firings(
    pairs: SortedPairs, decoded: Decoded, since: Int[Tensor, " m"], adam: AdamStep, *, aux: AuxGradients | None
) -> tuple[Float[Tensor, " m"], None]:
    """(gradient of b_enc, nothing); updates the tokens since every latent fired."""
    gradient = torch.empty(len(since))
    acts, grad_acts = (t.detach().reshape(-1).numpy() for t in (decoded.acts, decoded.grad_acts))
    _latents(pairs.offsets, pairs.order, acts, grad_acts, int(adam.n_tokens), gradient.numpy(), since.numpy())
    if aux is not None:
        is_dead = aux.slots >= 0
        gradient[is_dead] += aux.b_enc[aux.slots[is_dead].long()]
    return gradient, None


@njit(cache=True)
def _add_row(grad, i, offsets, order, k, weights_of_pairs, source, levels, factor, slots, aux):  # pragma: no cover
    """Adds the gradient of row i of a table to `grad`, which is 0."""
    for p in range(offsets[i], offsets[i + 1]):
        a = weights_of_pairs[order[p]]
        if a != 0:
            row = source[levels[i], order[p] // k]
            for d in range(len(grad)):
                grad[d] += a * row[d]

    for d in range(len(grad)):
        grad[d] *= factor

    if len(aux) > 0 and slots[i] >= 0:
        for d in range(len(grad)):
            grad[d] += aux[slots[i], d]


@njit(cache=True)
def _update_row(grad, w, m, v, unit, adam):  # pragma: no cover (compiled)
    """Adam on one row w with moments m and v, then its unit norm; `grad` is overwritten."""
    if unit:
        along = _dot(grad, w)
        for d in range(len(w)):
            grad[d] -= along * w[d]

    for d in range(len(w)):
        m[d] = adam[2] * m[d] + adam[5] * grad[d]
        v[d] = adam[3] * v[d] + adam[6] * grad[d] * grad[d]
        w[d] -= adam[0] * m[d] / (np.sqrt(v[d]) * adam[1] + adam[4])

    if unit:
        scale = np.float32(1) / max(np.sqrt(_dot(w, w)), np.float32(1e-12))
        for d in range(len(w)):
            w[d] *= scale


@njit(parallel=True, cache=True)
def _rows(
    offsets, order, k, weights_of_pairs, source, levels, factor, slots, aux, weights, mean, square, unit, adam
):  # pragma: no cover (compiled)
    for i in prange(len(weights)):
        grad = np.zeros(weights.shape[1], np.float32)
        _add_row(grad, i, offsets, order, k, weights_of_pairs, source, levels, factor, slots, aux)
        _update_row(grad, weights[i], mean[i], square[i], unit, adam)


@njit(parallel=True, cache=True)
def _gradients(offsets, order, k, weights_of_pairs, source, levels, factor, slots, aux, out):  # pragma: no cover
    for i in prange(len(out)):
        _add_row(out[i], i, offsets, order, k, weights_of_pairs, source, levels, factor, slots, aux)


@njit(parallel=True, cache=True)
def _apply(gradients, weights, mean, square, unit, adam):  # pragma: no cover (compiled)
    for i in prange(len(weights)):
        _update_row(gradients[i], weights[i], mean[i], square[i], unit, adam)


def _row_sums(sums: RowSums, aux: AuxGradients | None, prefixes: Tensor | None) -> list[tuple[Any, ...]]:
    """The arguments of `_add_row` for the encoder's rows and for the decoder's."""
    pairs, decoded, centred, coefficient, _ = sums
    k, n_latents = decoded.acts.shape[1], len(pairs.offsets) - 1
    no_slots, no_rows = np.zeros(0, np.int32), np.zeros((0, 1), np.float32)
    slots = no_slots if aux is None else aux.slots.numpy()
    levels = _level_of_latent(n_latents, prefixes)

    def arguments(
        weights_of_pairs: Tensor, source: Tensor, level: np.ndarray, factor: float, *, aux_rows: np.ndarray
    ) -> tuple[Any, ...]:
        return (
            pairs.offsets, pairs.order, k, weights_of_pairs.detach().reshape(-1).numpy(), source.contiguous().numpy(),
            level, np.float32(factor), slots, aux_rows,
        )  # fmt: skip

    encoder_aux, decoder_aux = (no_rows, no_rows) if aux is None else (aux.w_enc.numpy(), aux.w_dec.numpy())

    return [
        arguments(decoded.grad_acts, centred[None], np.zeros_like(levels), 1.0, aux_rows=encoder_aux),
        arguments(decoded.acts, decoded.error, levels, float(coefficient), aux_rows=decoder_aux),
    ]


def update_rows(
    sums: RowSums,
    encoder: WeightTable,
    decoder: WeightTable,
    *,
    adam: AdamStep,
    aux: AuxGradients | None,
    prefixes: Int[Tensor, " l"] | None = None,
) -> None:
    """See `cuda_step.update_rows`."""
    terms = _row_sums(sums, aux, prefixes)
    for table, arguments, has_unit_norm in zip((encoder, decoder), terms, (False, True), strict=True):
        with _as_floats(table, adam) as floats:
            _rows(*arguments, *floats, has_unit_norm, _floats(adam))


def row_gradients(
    sums: RowSums,
    adam: AdamStep,
    dtype: torch.dtype,
    *,
    aux: AuxGradients | None,
    prefixes: Int[Tensor, " l"] | None = None,
) -> Iterator[Float[Tensor, "m d"]]:
    """See `cuda_step.row_gradients`."""
    n_latents, sources = len(sums.pairs.offsets) - 1, (sums.centred, sums.decoded.error)
    for source, arguments in zip(sources, _row_sums(sums, aux, prefixes), strict=True):
        out = torch.zeros(n_latents, source.shape[-1])
        _gradients(*arguments, out.numpy())
        yield moments.rounded(out, dtype, int(adam.numbers[4]))


def apply_rows(
    gradients: Float[Tensor, "parts m d"], table: WeightTable, *, adam: AdamStep, has_unit_norm: bool
) -> None:
    """See `cuda_step.apply_rows`."""
    with _as_floats(table, adam) as floats:
        _apply(gradients.float().sum(0).numpy(), *floats, has_unit_norm, _floats(adam))


__all__ = [
    "DTYPE", "apply_rows", "batch_pairs", "bias_gradient_and_firings", "decode", "encode", "fits_groups", "numbers", "prepare",
    "rounded", "row_gradients", "row_times", "sorted_pairs", "top_k", "update_rows", "update_vector", "values_at",
    "widest",
]  # fmt: skip
