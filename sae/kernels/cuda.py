"""The selection and the training step of a dictionary on a GPU, in Triton; `reference` defines what they compute.

Everything sums in a fixed order (no atomic additions of floats), so a step gives the same bits every time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sae.kernels.reference import above, batch_top_k, norm_crossing, ragged

GROUP = 64  # latents whose largest pre-activation stands for them while the k largest are looked for
LONG = 256  # pairs of one latent that one program adds up; more are added up in parts


@triton.jit
def _prepare_kernel(
    raw, scale, centre, target, given, squares, WIDTH: tl.constexpr, SIZE: tl.constexpr, CENTRED: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, SIZE)
    ok = columns < WIDTH
    y = tl.load(raw + row * WIDTH + columns, ok, 0.0).to(tl.float32) * tl.load(scale + columns, ok, 0.0)
    tl.store(target + row * WIDTH + columns, y, ok)
    tl.store(squares + row, tl.sum(y * y, 0))
    if CENTRED:
        y -= tl.load(centre + columns, ok, 0.0)
    tl.store(given + row * WIDTH + columns, y.to(tl.bfloat16), ok)


@triton.jit
def _encode_kernel(
    given, table, bias, out, maxima, n_rows, n_latents, PROGRAMS: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, LATENTS: tl.constexpr, STEP: tl.constexpr, GROUPED: tl.constexpr,
    MAXIMA: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    down, across = tl.cdiv(n_rows, ROWS), tl.cdiv(n_latents, LATENTS)
    # One program does many tiles, so that the next tile is read while the last one is written.
    for tile in tl.range(tl.program_id(0), down * across, PROGRAMS, flatten=True):
        first = tile // (GROUPED * across) * GROUPED  # tiles at work together share rows and latents in the cache
        size = min(down - first, GROUPED)
        row_block, latent_block = first + (tile % (GROUPED * across)) % size, (tile % (GROUPED * across)) // size
        total = tl.zeros((ROWS, LATENTS), tl.float32)
        for start in range(0, WIDTH, STEP):
            a = given.load([row_block * ROWS, start])
            b = table.load([latent_block * LATENTS, start])
            total = tl.dot(a, b.T, total)
        latents = latent_block * LATENTS + tl.arange(0, LATENTS)
        rounded = (total + tl.load(bias + latents, latents < n_latents, 0.0)[None, :]).to(tl.bfloat16)
        out.store([row_block * ROWS, latent_block * LATENTS], rounded)
        if MAXIMA:
            best = tl.max(tl.reshape(rounded.to(tl.float32), (ROWS, LATENTS // SPAN, SPAN)), 2).to(tl.bfloat16)
            rows, n_groups = row_block * ROWS + tl.arange(0, ROWS), n_latents // SPAN
            groups = latent_block * (LATENTS // SPAN) + tl.arange(0, LATENTS // SPAN)
            inside = (rows < n_rows)[:, None] & (groups < n_groups)[None, :]
            tl.store(maxima + rows[:, None] * n_groups + groups[None, :], best, inside)


@triton.jit
def _maxima_kernel(pre_acts, maxima, n_groups, GROUPS: tl.constexpr, SPAN: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    groups = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    places = groups[:, None] * SPAN + tl.arange(0, SPAN)[None, :]
    inside = (groups < n_groups)[:, None] & (places >= 0)
    found = tl.load(pre_acts + row * n_groups * SPAN + places, inside, float("-inf"))
    tl.store(maxima + row * n_groups + groups, tl.max(found, 1), groups < n_groups)


@triton.jit
def _ordered(values, BITS: tl.constexpr):
    """Integers in the order of the floats: their bits, with those of negative numbers turned round."""
    if BITS == 16:
        bits = values.to(tl.int16, bitcast=True).to(tl.int32)
        ordered = tl.where(bits < 0, bits ^ 0x7FFF, bits)
    else:
        bits = values.to(tl.int32, bitcast=True)
        ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return ordered


@triton.jit
def _chosen(keys, low, high, K: tl.constexpr):
    """(which of `keys` are the K largest, ties to the first; their places 0..K-1; the K-th largest).

    At least K keys reach `low` and none is over `high`: the bound is found by halving.
    """
    while low < high:
        middle = high - (high - low) // 2
        enough = tl.sum((keys >= middle).to(tl.int32), 0) >= K
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    above, at = keys > low, keys == low
    spare = K - tl.sum(above.to(tl.int32), 0)
    take = above | (at & (tl.cumsum(at.to(tl.int32), 0) <= spare))
    return take, tl.cumsum(take.to(tl.int32), 0) - 1, low


@triton.jit
def _groups_kernel(maxima, groups, bounds, n_groups, K: tl.constexpr, SIZE: tl.constexpr, BITS: tl.constexpr):
    row = tl.program_id(0)
    numbers = tl.arange(0, SIZE)
    ok = numbers < n_groups
    keys = _ordered(tl.load(maxima + row * n_groups + numbers, ok, float("-inf")), BITS)
    high = tl.max(keys, 0)
    low = tl.min(tl.where(ok, keys, high), 0)
    take, place, least = _chosen(tl.where(ok, keys, low - 1), low, high, K)
    tl.store(groups + row * K + place, numbers, take)
    tl.store(bounds + row, least)


@triton.jit
def _pick_kernel(
    pre_acts, groups, bounds, indices, values, n_latents, K: tl.constexpr, SIZE: tl.constexpr, SPAN: tl.constexpr,
    BITS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    number = tl.arange(0, SIZE)
    ok = number // SPAN < K
    group = tl.load(groups + row * K + number // SPAN, ok, 0)
    latents = group * SPAN + number % SPAN
    found = tl.load(pre_acts + row.to(tl.int64) * n_latents + latents, ok, float("-inf"))
    low = tl.load(bounds + row)
    keys = tl.where(ok, _ordered(found, BITS), low - 1)
    take, place, _ = _chosen(keys, low, tl.max(keys, 0), K)
    tl.store(indices + row * K + place, latents, take)
    tl.store(values + row * K + place, found.to(tl.float32), take)


@triton.jit
def _decode_kernel(
    values, indices, table, bias, target, coefficient, acts, error, to_acts, squares, counts,
    K: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, SIZE)
    ok = number < K
    act = tl.maximum(tl.load(values + row * K + number, ok, 0.0), 0.0)
    tl.store(acts + row * K + number, act, ok)
    latent = tl.load(indices + row * K + number, ok, 0).to(tl.int64)
    inner = tl.zeros((SIZE,), tl.float32)
    square = tl.zeros((), tl.float32)
    for start in tl.static_range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < WIDTH
        rows = tl.load(table + latent[:, None] * WIDTH + columns[None, :], ok[:, None] & inside[None, :], 0.0)
        rows = rows.to(tl.float32)
        x_hat = tl.sum(act[:, None] * rows, 0) + tl.load(bias + columns, inside, 0.0)
        e = tl.where(inside, x_hat - tl.load(target + row * WIDTH + columns, inside, 0.0), 0.0)
        tl.store(error + row * WIDTH + columns, e.to(tl.bfloat16), inside)
        inner += tl.sum(rows * e[None, :], 1)
        square += tl.sum(e * e, 0)
    inner = tl.where(act > 0, inner * tl.load(coefficient), 0.0)
    tl.store(to_acts + row * K + number, inner, ok)
    tl.store(squares + row, square)
    tl.store(counts + row, tl.sum((act > 0).to(tl.float32), 0))


@triton.jit
def _pair_sums(
    start, end, order, acts, to_acts, error, given, K: tl.constexpr, PAIRS: tl.constexpr,
    WIDTH_IN: tl.constexpr, WIDTH_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """(sum of to_act * given row, sum of act * error row) over the pairs start..end of the sorted list."""
    to_encoder, to_decoder = tl.zeros((BLOCK_IN,), tl.float32), tl.zeros((BLOCK_OUT,), tl.float32)
    into, out = tl.arange(0, BLOCK_IN), tl.arange(0, BLOCK_OUT)
    for first in range(start, end, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        ok = pair < end
        place = tl.load(order + pair, ok, 0)
        token = place // K
        act, to_act = tl.load(acts + place, ok, 0.0), tl.load(to_acts + place, ok, 0.0)
        e = tl.load(error + token[:, None] * WIDTH_OUT + out[None, :], ok[:, None] & (out < WIDTH_OUT)[None, :], 0.0)
        x = tl.load(given + token[:, None] * WIDTH_IN + into[None, :], ok[:, None] & (into < WIDTH_IN)[None, :], 0.0)
        to_decoder += tl.sum(act[:, None] * e.to(tl.float32), 0)
        to_encoder += tl.sum(to_act[:, None] * x.to(tl.float32), 0)
    return to_encoder, to_decoder


@triton.jit
def _adam(place, grad, ok, weights, mean, square, rate, root, beta1, beta2, eps):
    """New weights of one row after Adam (Kingma and Ba 2015, algorithm 1); its moments are stored."""
    m = tl.load(mean + place, ok, 0.0)
    v = tl.load(square + place, ok, 0.0)
    m += (1 - beta1) * (grad - m)
    v = beta2 * v + (1 - beta2) * grad * grad
    tl.store(mean + place, m, ok)
    tl.store(square + place, v, ok)
    return tl.load(weights + place, ok, 0.0) - rate * m / (tl.sqrt(v) * root + eps)


@triton.jit
def _latents_kernel(
    offsets, order, acts, to_acts, slots, more, bias, mean, square, gradient, since, n_parts, n_tokens,
    rate, root, beta1, beta2, eps, MORE: tl.constexpr, SPLIT: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    latent = tl.program_id(0)
    start, end = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    total, most = tl.zeros((SIZE,), tl.float32), tl.zeros((SIZE,), tl.float32)
    for first in range(start, end, SIZE):
        pair = first + tl.arange(0, SIZE)
        place = tl.load(order + pair, pair < end, 0)
        total += tl.load(to_acts + place, pair < end, 0.0)
        most = tl.maximum(most, tl.load(acts + place, pair < end, 0.0))
    grad = tl.sum(total, 0)
    if MORE:
        slot = tl.load(slots + latent)
        grad += tl.load(more + slot, slot >= 0, 0.0)
    tl.store(gradient + latent, tl.sum(total, 0))
    tl.store(bias + latent, _adam(latent, grad, True, bias, mean, square, rate, root, beta1, beta2, eps))
    tl.store(since + latent, tl.where(tl.max(most, 0) > 0, 0, tl.load(since + latent) + n_tokens))
    tl.store(n_parts + latent, tl.where(end - start > SPLIT, tl.cdiv(end - start, SPLIT), 0))


@triton.jit
def _vector_kernel(bias, mean, square, gradient, n, rate, root, beta1, beta2, eps, SIZE: tl.constexpr):
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    ok = place < n
    grad = tl.load(gradient + place, ok, 0.0)
    tl.store(bias + place, _adam(place, grad, ok, bias, mean, square, rate, root, beta1, beta2, eps), ok)


@triton.jit
def _parts_kernel(
    owners, ends, offsets, order, acts, to_acts, error, given, encoder_parts, decoder_parts,
    n_latents, SPLIT: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr,
    WIDTH_IN: tl.constexpr, WIDTH_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)
    latent = tl.load(owners + part)
    if latent < n_latents:
        whole, end = tl.load(offsets + latent), tl.load(offsets + latent + 1)
        number = part - (tl.load(ends + latent) - tl.cdiv(end - whole, SPLIT))
        start = whole + number.to(tl.int32) * SPLIT
        end = min(end, start + SPLIT)
        to_encoder, to_decoder = _pair_sums(
            start, end, order, acts, to_acts, error, given, K, PAIRS, WIDTH_IN, WIDTH_OUT, BLOCK_IN, BLOCK_OUT
        )
        into, out = tl.arange(0, BLOCK_IN), tl.arange(0, BLOCK_OUT)
        tl.store(encoder_parts + part * WIDTH_IN + into, to_encoder, into < WIDTH_IN)
        tl.store(decoder_parts + part * WIDTH_OUT + out, to_decoder, out < WIDTH_OUT)


@triton.jit
def _update_kernel(
    offsets, ends, order, acts, to_acts, error, given, coefficient, encoder_parts, decoder_parts,
    slots, encoder_more, decoder_more,
    encoder, encoder_mean, encoder_square, encoder_rounded, decoder, decoder_mean, decoder_square, decoder_rounded,
    rate, root, beta1, beta2, eps, MORE: tl.constexpr, SPLIT: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr,
    WIDTH_IN: tl.constexpr, WIDTH_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    latent = tl.program_id(0).to(tl.int64)
    start, end = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    into, out = tl.arange(0, BLOCK_IN), tl.arange(0, BLOCK_OUT)
    in_ok, out_ok = into < WIDTH_IN, out < WIDTH_OUT
    if end - start <= SPLIT:
        to_encoder, to_decoder = _pair_sums(
            start, end, order, acts, to_acts, error, given, K, PAIRS, WIDTH_IN, WIDTH_OUT, BLOCK_IN, BLOCK_OUT
        )
    else:
        to_encoder, to_decoder = tl.zeros((BLOCK_IN,), tl.float32), tl.zeros((BLOCK_OUT,), tl.float32)
        last = tl.load(ends + latent)
        for part in range(last - tl.cdiv(end - start, SPLIT), last):
            to_encoder += tl.load(encoder_parts + part * WIDTH_IN + into, in_ok, 0.0)
            to_decoder += tl.load(decoder_parts + part * WIDTH_OUT + out, out_ok, 0.0)
    to_decoder *= tl.load(coefficient)
    if MORE:
        slot = tl.load(slots + latent)
        if slot >= 0:
            to_encoder += tl.load(encoder_more + slot * WIDTH_IN + into, in_ok, 0.0)
            to_decoder += tl.load(decoder_more + slot * WIDTH_OUT + out, out_ok, 0.0)
    place = latent * WIDTH_IN + into
    new = _adam(place, to_encoder, in_ok, encoder, encoder_mean, encoder_square, rate, root, beta1, beta2, eps)
    tl.store(encoder + place, new, in_ok)
    tl.store(encoder_rounded + place, new.to(tl.bfloat16), in_ok)
    place = latent * WIDTH_OUT + out
    row = tl.load(decoder + place, out_ok, 0.0)
    to_decoder -= tl.sum(to_decoder * row, 0) * row
    new = _adam(place, to_decoder, out_ok, decoder, decoder_mean, decoder_square, rate, root, beta1, beta2, eps)
    new = new / tl.maximum(tl.sqrt(tl.sum(new * new, 0)), 1e-12)
    tl.store(decoder + place, new, out_ok)
    tl.store(decoder_rounded + place, new.to(tl.bfloat16), out_ok)


class Adam(NamedTuple):
    """One update's numbers: rate = lr / (1 - beta1^t), root = 1 / sqrt(1 - beta2^t)."""

    rate: float
    root: float
    beta1: float
    beta2: float
    eps: float


def prepare(raw: Tensor, scale: Tensor, centre: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(raw * scale in float32, that minus `centre` in bfloat16, squared norms [tokens] of the first)."""
    target = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
    given = torch.empty(raw.shape, dtype=torch.bfloat16, device=raw.device)
    squares = torch.empty(len(raw), dtype=torch.float32, device=raw.device)
    _prepare_kernel[(len(raw),)](
        raw, scale, scale if centre is None else centre, target, given, squares, WIDTH=raw.shape[1],
        SIZE=triton.next_power_of_2(raw.shape[1]), CENTRED=centre is not None, num_warps=4,
    )  # fmt: skip
    return target, given, squares


def encode(given: Tensor, table: Tensor, bias: Tensor, with_maxima: bool = True) -> tuple[Tensor, Tensor | None]:
    """(pre-activations [tokens, latents] in bfloat16, the largest of every `GROUP` latents or None).

    `given` [tokens, width] and `table` [latents, width] in bfloat16, the width a multiple of 8; sums in float32.
    """
    n, m = len(given), len(table)
    out = torch.empty(n, m, dtype=torch.bfloat16, device=given.device)
    maxima = torch.empty(n, m // GROUP, dtype=torch.bfloat16, device=given.device) if with_maxima else None
    rows, latents, step = 128, 256, 64
    programs = torch.cuda.get_device_properties(given.device).multi_processor_count if given.is_cuda else 4
    _encode_kernel[(programs,)](
        TensorDescriptor.from_tensor(given, [rows, step]), TensorDescriptor.from_tensor(table, [latents, step]), bias,
        TensorDescriptor.from_tensor(out, [rows, latents]), out if maxima is None else maxima, n, m,
        PROGRAMS=programs, WIDTH=given.shape[1], ROWS=rows, LATENTS=latents, STEP=step, GROUPED=8, MAXIMA=with_maxima, SPAN=GROUP,
        num_warps=8, num_stages=3,
    )  # fmt: skip
    return out, maxima


def fits_groups(n_latents: int, k: int) -> bool:
    """Whether the k largest can be found by the maxima of groups."""
    return n_latents % GROUP == 0 and k <= n_latents // GROUP and k * GROUP <= 16_384


def _maxima(pre_acts: Tensor) -> Tensor:
    n, n_groups = len(pre_acts), pre_acts.shape[1] // GROUP
    maxima = torch.empty(n, n_groups, dtype=pre_acts.dtype, device=pre_acts.device)
    if n:
        _maxima_kernel[(n, triton.cdiv(n_groups, 32))](pre_acts, maxima, n_groups, GROUPS=32, SPAN=GROUP, num_warps=2)
    return maxima


def top_k(pre_acts: Tensor, k: int, maxima: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(indices in int32, values in float32), [tokens, k] each, of the k largest of every row, indices ascending.

    Exact: every one of the k largest lies in one of the k groups with the largest maxima. Ties go to the smaller index.
    """
    n, m = pre_acts.shape
    pre_acts = pre_acts.contiguous()
    if maxima is None:
        maxima = _maxima(pre_acts)
    bits = 16 if pre_acts.dtype == torch.bfloat16 else 32
    groups, indices = (torch.empty(n, k, dtype=torch.int32, device=pre_acts.device) for _ in range(2))
    values = torch.empty(n, k, dtype=torch.float32, device=pre_acts.device)
    if n:
        bounds = torch.empty(n, dtype=torch.int32, device=pre_acts.device)
        size = triton.next_power_of_2(maxima.shape[1])
        _groups_kernel[(n,)](
            maxima, groups, bounds, maxima.shape[1], K=k, SIZE=size, BITS=bits, num_warps=max(1, size // 2048)
        )
        size = triton.next_power_of_2(k) * GROUP
        _pick_kernel[(n,)](
            pre_acts, groups, bounds, indices, values, m, K=k, SIZE=size, SPAN=GROUP, BITS=bits,
            num_warps=min(16, max(1, size // 512)),
        )  # fmt: skip
    return indices, values


def top_k_indices(pre_acts: Tensor, k: int) -> Tensor:
    """See `reference.top_k_indices`; plain torch where the row is too short for groups."""
    if fits_groups(pre_acts.shape[1], k) and pre_acts.dtype in (torch.bfloat16, torch.float32):
        return top_k(pre_acts, k)[0].long()
    return pre_acts.topk(k, dim=1, sorted=False).indices.sort(dim=1).values


class Decoded(NamedTuple):
    """Of one batch: activations and their gradients [tokens, k], x_hat - target in bfloat16 [tokens, width], and by
    token [tokens] the squared error and the number of activations over 0."""

    acts: Tensor
    to_acts: Tensor
    error: Tensor
    squares: Tensor
    counts: Tensor


def decode(
    values: Tensor, indices: Tensor, table: Tensor, bias: Tensor, target: Tensor, coefficient: Tensor
) -> Decoded:
    """Everything of a token that the decoder says, from its pre-activations `values` [tokens, k].

    The loss is coefficient / 2 times the sum of the squared errors; an activation of 0 has no gradient.
    """
    (n, k), width = values.shape, target.shape[1]
    acts, to_acts = torch.empty_like(values), torch.empty_like(values)
    error = torch.empty(target.shape, dtype=torch.bfloat16, device=values.device)
    squares, counts = torch.empty(2, n, dtype=torch.float32, device=values.device)
    size = triton.next_power_of_2(k)
    block = max(16, min(128, width & -width, 16_384 // size))
    _decode_kernel[(n,)](
        values, indices, table, bias, target, coefficient, acts, error, to_acts, squares, counts, K=k, SIZE=size,
        WIDTH=width, BLOCK=block, num_warps=1 if size * block <= 4096 else 4,
    )  # fmt: skip
    return Decoded(acts, to_acts, error, squares, counts)


class Pairs:
    """The (token, latent) pairs of a batch sorted by latent; places that hold no latent are named `n_latents`."""

    def __init__(self, indices: Tensor, n_latents: int):
        ordered, self.order = indices.flatten().sort(stable=True)
        bounds = torch.arange(n_latents + 1, device=indices.device, dtype=indices.dtype)
        self.offsets = torch.searchsorted(ordered, bounds, out_int32=True)
        self.n_parts = 2 * len(ordered) // LONG


More = tuple[Tensor, Tensor, Tensor, Tensor]  # the row of every latent or -1; rows for encoder, decoder, b_enc
Rows = tuple[Tensor, Tensor, Tensor, Tensor]  # weights [latents, width], both moments, weights in bfloat16


def update_latents(
    pairs: Pairs, decoded: Decoded, bias: tuple[Tensor, Tensor, Tensor], since: Tensor, adam: Adam, more: More | None
) -> tuple[Tensor, Tensor]:
    """Updates b_enc and the tokens since every latent fired; returns (gradient of b_enc without `more`, end of parts)."""
    n_latents = len(since)
    gradient = torch.empty(n_latents, dtype=torch.float32, device=since.device)
    n_parts = torch.empty(n_latents, dtype=torch.int32, device=since.device)
    slots, rows = (more[0], more[3]) if more else (pairs.offsets, gradient)
    _latents_kernel[(n_latents,)](
        pairs.offsets, pairs.order, decoded.acts, decoded.to_acts, slots, rows, *bias, gradient, since, n_parts,
        len(decoded.acts), *adam, MORE=more is not None, SPLIT=LONG, SIZE=32, num_warps=1,
    )  # fmt: skip
    return gradient, n_parts.cumsum(0)


def update_vector(bias: tuple[Tensor, Tensor, Tensor], gradient: Tensor, adam: Adam) -> None:
    """Adam on a vector (weights, both moments), in place."""
    n, size = len(gradient), 256
    _vector_kernel[(triton.cdiv(n, size),)](*bias, gradient, n, *adam, SIZE=size, num_warps=2)


def update_rows(
    pairs: Pairs, decoded: Decoded, given: Tensor, coefficient: Tensor, ends: Tensor, encoder: Rows, decoder: Rows,
    adam: Adam, more: More | None,
) -> None:  # fmt: skip
    """Both weight gradients, Adam and the unit norm of the decoder rows, in place; no gradient is ever written."""
    k, n_latents, device = decoded.acts.shape[1], len(encoder[0]), given.device
    width_in, width_out = given.shape[1], decoded.error.shape[1]
    sizes: dict[str, Any] = dict(
        K=k, WIDTH_IN=width_in, WIDTH_OUT=width_out, BLOCK_IN=triton.next_power_of_2(width_in),
        BLOCK_OUT=triton.next_power_of_2(width_out), SPLIT=LONG,
    )  # fmt: skip
    sizes["num_warps"] = 4 if max(sizes["BLOCK_IN"], sizes["BLOCK_OUT"]) <= 4096 else 8
    parts = [torch.empty(pairs.n_parts, w, dtype=torch.float32, device=device) for w in (width_in, width_out)]
    read = decoded.acts, decoded.to_acts, decoded.error, given
    if pairs.n_parts:
        owners = torch.searchsorted(ends, torch.arange(pairs.n_parts, device=device), right=True)
        _parts_kernel[(pairs.n_parts,)](
            owners, ends, pairs.offsets, pairs.order, *read, *parts, n_latents, PAIRS=4, **sizes
        )
    slots, *rows = more[:3] if more else (pairs.offsets, *parts)
    _update_kernel[(n_latents,)](
        pairs.offsets, ends, pairs.order, *read, coefficient, *parts, slots, *rows, *encoder, *decoder, *adam,
        MORE=more is not None, PAIRS=1, **sizes,
    )  # fmt: skip


__all__ = [
    "Adam",
    "Decoded",
    "More",
    "Pairs",
    "Rows",
    "above",
    "batch_top_k",
    "decode",
    "encode",
    "fits_groups",
    "norm_crossing",
    "prepare",
    "ragged",
    "top_k",
    "top_k_indices",
    "update_latents",
    "update_rows",
    "update_vector",
]
