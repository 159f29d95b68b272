"""The training step of a dictionary on a CPU, in numba: what `cuda` is to a GPU, in float32 and in a fixed order of sums."""

# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from sae.kernels import moments
from sae.kernels.cpu import gather_dot
from sae.kernels.step_parts import Adam, Decoded, More, Rows

DTYPE = torch.float32  # of stored rows


def _floats(adam: Adam) -> np.ndarray:
    """[rate, root, beta1, beta2, eps, 1 - beta1, 1 - beta2] in float32."""
    rate, root, *_ = adam.numbers.tolist()
    return np.array([rate, root, adam.beta1, adam.beta2, adam.eps, 1 - adam.beta1, 1 - adam.beta2], np.float32)


@contextmanager
def _floats_of(rows: Rows, adam: Adam) -> Iterator[list[np.ndarray]]:
    """[weights, both moments] of a table in float32, to be changed in place; what is kept in fewer bits follows them."""
    mean, square = moments.both_widened(rows)
    yield [t.numpy() for t in (rows.weights, mean, square)]
    moments.narrow_both(mean, square, rows, int(adam.numbers[4]))
    if rows.rounded.data_ptr() != rows.weights.data_ptr():
        rows.rounded.copy_(rows.weights)


def widest(n_latents: int) -> int:
    """The most latents of one token: with more, dense products are faster."""
    return max(1, n_latents // 4)


def numbers(n: int, device: torch.device) -> Tensor:
    """0 .. n - 1."""
    return torch.arange(n, device=device)


def rounded(table: Tensor, selection: torch.dtype) -> Tensor:
    """The table [latents, width] as the encoder's product reads it: itself, or a copy in bfloat16."""
    return table.to(selection)


def prepare(raw: Tensor, scale: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(raw * scale, that minus `centre`, squared norms [tokens] of the first)."""
    target = raw * scale
    return target, target - centre, target.square().sum(1)


def encode(given: Tensor, table: Tensor, bias: Tensor, with_maxima: bool = False) -> tuple[Tensor, None]:
    """(pre-activations [tokens, latents] in the table's dtype, nothing)."""
    return torch.addmm(bias.to(table.dtype), given.to(table.dtype), table.T), None


def fits_groups(n_latents: int, k: int) -> bool:
    """Never: `cpu.top_k_indices` looks for groups itself."""
    return False


def values_at(pre_acts: Tensor, indices: Tensor, given: Tensor, table: Tensor, bias: Tensor) -> Tensor:
    """Pre-activations [tokens, k] of the selected latents in float32, in a fixed order of sums.

    Not those of the product: its last bits depend on how the library shares the work out.
    """
    return gather_dot(given, table, indices) + bias[indices]


def row_times(row: Tensor, table: Tensor) -> Tensor:
    """row [n] times a table [n, width], in float32."""
    return row.float() @ table.float()


@njit(fastmath=True, cache=True)
def _dot(a, b):  # pragma: no cover (compiled)
    """The inner product. Nothing else may be reordered: what is compiled and what is read from the cache would differ."""
    total = np.float32(0)
    for d in range(len(a)):
        total += a[d] * b[d]
    return total


@njit(parallel=True, cache=True)
def _decode(
    values, indices, table, bias, target, coefficient, levels, rectify, acts, to_acts, error, by_token
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
            to_acts[n, j] = total * coefficient
        by_token[0, n], by_token[1, n], by_token[2, n] = squares, prefix_squares, count


def _levels(n_latents: int, prefixes: Tensor | None) -> np.ndarray:
    levels = np.zeros(n_latents, np.int32)
    for end in [] if prefixes is None else prefixes[:-1].tolist():
        levels[end:] += 1
    return levels


def decode(
    values: Tensor, indices: Tensor, table: Tensor, bias: Tensor, target: Tensor, coefficient: Tensor, n_rows: Tensor,
    prefixes: Tensor | None, starts: None = None, rectify: bool = True,
    error_dtype: torch.dtype = torch.float32,
) -> Decoded:  # fmt: skip
    """See `cuda.decode`; all rows count."""
    n_levels = 1 if prefixes is None else len(prefixes)
    acts, to_acts = torch.empty_like(values), torch.empty_like(values)
    error, by_token = torch.empty(n_levels, *target.shape, dtype=error_dtype), torch.empty(3, len(values))
    _decode(
        values.detach().numpy(), indices.numpy(), table.numpy(), bias.detach().numpy(), target.numpy(),
        np.float32(coefficient), _levels(len(table), prefixes), rectify,
        acts.numpy(), to_acts.numpy(), error.numpy(), by_token.numpy(),
    )  # fmt: skip
    return Decoded(acts, to_acts, error, by_token)


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


class Pairs:
    """The (token, latent) pairs of a batch sorted by latent; places that hold no latent are named `n_latents`."""

    def __init__(self, indices: Tensor, n_latents: int, tokens: None = None):
        self.offsets, self.order = np.zeros(n_latents + 1, np.int64), np.empty(indices.numel(), np.int64)
        _sort(indices.reshape(-1).numpy(), n_latents, self.offsets, self.order)


@njit(parallel=True, cache=True)
def _latents(offsets, order, acts, to_acts, n_tokens, gradient, since):  # pragma: no cover (compiled)
    for i in prange(len(since)):
        total, fired = np.float32(0), False
        for p in range(offsets[i], offsets[i + 1]):
            total += to_acts[order[p]]
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


def update_vector(bias: tuple[Tensor, Tensor, Tensor], gradient: Tensor, adam: Adam) -> None:
    """Adam on a vector (weights, both moments), in place."""
    weights, mean, square = (t.numpy() for t in bias)
    _vector(weights, mean, square, gradient.contiguous().numpy(), _floats(adam))


def count_latents(pairs: Pairs, decoded: Decoded, since: Tensor, adam: Adam, more: More | None) -> tuple[Tensor, None]:
    """Updates the tokens since every latent fired; returns (gradient of b_enc, nothing)."""
    gradient = torch.empty(len(since))
    acts, to_acts = (t.detach().reshape(-1).numpy() for t in (decoded.acts, decoded.to_acts))
    _latents(pairs.offsets, pairs.order, acts, to_acts, int(adam.numbers[2]), gradient.numpy(), since.numpy())
    if more is not None:
        dead = more[0] >= 0
        gradient[dead] += more[3][more[0][dead].long()]
    return gradient, None


@njit(cache=True)
def _add_row(grad, i, offsets, order, k, weights_of_pairs, source, levels, factor, slots, more):  # pragma: no cover
    """Adds the gradient of row i of a table to `grad`, which is 0."""
    for p in range(offsets[i], offsets[i + 1]):
        a = weights_of_pairs[order[p]]
        if a != 0:
            row = source[levels[i], order[p] // k]
            for d in range(len(grad)):
                grad[d] += a * row[d]
    for d in range(len(grad)):
        grad[d] *= factor
    if len(more) > 0 and slots[i] >= 0:
        for d in range(len(grad)):
            grad[d] += more[slots[i], d]


@njit(cache=True)
def _update_row(grad, w, m, v, unit, adam):  # pragma: no cover (compiled)
    """Adam on one row w with moments m and v, and its unit norm; `grad` is overwritten."""
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
    offsets, order, k, weights_of_pairs, source, levels, factor, slots, more, weights, mean, square, unit, adam
):  # pragma: no cover (compiled)
    for i in prange(len(weights)):
        grad = np.zeros(weights.shape[1], np.float32)
        _add_row(grad, i, offsets, order, k, weights_of_pairs, source, levels, factor, slots, more)
        _update_row(grad, weights[i], mean[i], square[i], unit, adam)


@njit(parallel=True, cache=True)
def _gradients(offsets, order, k, weights_of_pairs, source, levels, factor, slots, more, out):  # pragma: no cover
    for i in prange(len(out)):
        _add_row(out[i], i, offsets, order, k, weights_of_pairs, source, levels, factor, slots, more)


@njit(parallel=True, cache=True)
def _apply(gradients, weights, mean, square, unit, adam):  # pragma: no cover (compiled)
    for i in prange(len(weights)):
        _update_row(gradients[i], weights[i], mean[i], square[i], unit, adam)


def _sums(
    pairs: Pairs, decoded: Decoded, given: Tensor, coefficient: Tensor, more: More | None, prefixes: Tensor | None
) -> list[tuple[Any, ...]]:
    """What the gradients of the encoder's and of the decoder's rows are summed from."""
    k, n_latents = decoded.acts.shape[1], len(pairs.offsets) - 1
    slots = np.zeros(0, np.int32) if more is None else more[0].numpy()
    levels = _levels(n_latents, prefixes)
    parts = (
        (decoded.to_acts, given[None], np.zeros_like(levels), 1.0, 1),
        (decoded.acts, decoded.error, levels, float(coefficient), 2),
    )
    return [
        (
            pairs.offsets, pairs.order, k, of_pairs.detach().reshape(-1).numpy(), source.contiguous().numpy(), of,
            np.float32(factor), slots, np.zeros((0, 1), np.float32) if more is None else more[number].numpy(),
        )
        for of_pairs, source, of, factor, number in parts
    ]  # fmt: skip


def update_rows(
    pairs: Pairs, decoded: Decoded, given: Tensor, coefficient: Tensor, ends: None, encoder: Rows, decoder: Rows,
    adam: Adam, more: More | None, prefixes: Tensor | None = None,
) -> None:  # fmt: skip
    """See `cuda.update_rows`."""
    sums = _sums(pairs, decoded, given, coefficient, more, prefixes)
    for rows, terms, unit in zip((encoder, decoder), sums, (False, True), strict=True):
        with _floats_of(rows, adam) as floats:
            _rows(*terms, *floats, unit, _floats(adam))


def row_gradients(
    pairs: Pairs, decoded: Decoded, given: Tensor, coefficient: Tensor, ends: None, more: More | None,
    prefixes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `cuda.row_gradients`."""
    n_latents = len(pairs.offsets) - 1
    to_encoder, to_decoder = (torch.zeros(n_latents, t.shape[-1]) for t in (given, decoded.error))
    sums = _sums(pairs, decoded, given, coefficient, more, prefixes)
    for out, terms in zip((to_encoder, to_decoder), sums, strict=True):
        _gradients(*terms, out.numpy())
    return to_encoder, to_decoder


def apply_rows(to_encoder: Tensor, to_decoder: Tensor, encoder: Rows, decoder: Rows, adam: Adam) -> None:
    """See `cuda.apply_rows`."""
    for gradients, rows, unit in ((to_encoder, encoder, False), (to_decoder, decoder, True)):
        with _floats_of(rows, adam) as floats:
            _apply(gradients.numpy(), *floats, unit, _floats(adam))
