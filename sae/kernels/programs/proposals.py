"""The Triton programs that round rows to 8 bits and decide between the latents that such rows propose."""

# pyright: reportMissingImports=false

import triton
import triton.language as tl

LARGEST = tl.constexpr(448.0)  # that float8 e4m3 holds


@triton.jit
def quantise_program(table, codes, scales, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    """One row: numbers / scale in float8 e4m3, with the scale by which its largest one becomes the largest there is."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, SIZE)
    ok = columns < WIDTH
    x = tl.load(table + row * WIDTH + columns, ok, 0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), 0), 1e-30) / LARGEST
    tl.store(codes + row * WIDTH + columns, (x / scale).to(tl.float8e4nv), ok)
    tl.store(scales + row, scale)


@triton.jit
def decide_program(
    centred, table, bias, proposed, indices, values, WIDTH: tl.constexpr, K: tl.constexpr, N_PROPOSED: tl.constexpr,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: the K largest of its N_PROPOSED latents by pre-activations summed in float32, latents ascending.

    Proposed latents ascend too, so of two that are equal the smaller one wins.
    """
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, SIZE)
    is_there = places < N_PROPOSED
    latents = tl.load(proposed + row * N_PROPOSED + places, is_there, 0)
    total = tl.zeros((SIZE,), tl.float32)
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(centred + row * WIDTH + columns, columns < WIDTH, 0.0).to(tl.float32)
        inside = is_there[:, None] & (columns < WIDTH)[None, :]
        w = tl.load(table + latents.to(tl.int64)[:, None] * WIDTH + columns[None, :], inside, 0.0).to(tl.float32)
        total += tl.sum(w * x[None, :], 1)
    total = tl.where(is_there, total + tl.load(bias + latents, is_there, 0.0), -float("inf"))

    is_ahead = (total[None, :] > total[:, None]) | (
        (total[None, :] == total[:, None]) & (places[None, :] < places[:, None])
    )
    is_kept = is_there & (tl.sum(is_ahead.to(tl.int32), 1) < K)
    to = row * K + tl.cumsum(is_kept.to(tl.int32), 0) - 1
    tl.store(indices + to, latents, is_kept)
    tl.store(values + to, total, is_kept)
