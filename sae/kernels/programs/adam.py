"""Adam on a row of weights in Triton, with moments in float32 or fewer bits: `moments` defines what it computes."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def draw_of(place, numbers):
    """The 32 bits of `moments.noise` for a place at this update."""
    x = place.to(tl.uint32) ^ (tl.load(numbers + 4).to(tl.uint32) * 0x9E3779B1)
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def load_moment(stored, place, ok, scale):
    """See `moments.widened`."""
    kind: tl.constexpr = stored.dtype.element_ty
    loaded = tl.load(stored + place, ok, 0).to(tl.float32)
    if kind == tl.int8:
        share = loaded * loaded * (1.0 / (127.0 * 127.0))
        loaded = tl.where(loaded < 0, -share * share, share * share) * tl.load(scale)
    elif kind == tl.uint8:
        share = (loaded + 1) * (loaded + 1) * (1.0 / (256.0 * 256.0))
        loaded = share * share * tl.load(scale)
    return loaded


@triton.jit
def store_moment(stored, place, ok, value, draw, scale):
    """See `moments.narrow`; `draw` is below 65,536."""
    kind: tl.constexpr = stored.dtype.element_ty
    if kind == tl.float32:
        tl.store(stored + place, value, ok)
    elif kind == tl.bfloat16:
        bits = (value.to(tl.uint32, bitcast=True) + draw) >> 16
        tl.store(stored + place, bits.to(tl.uint16).to(tl.bfloat16, bitcast=True), ok)
    else:
        LEVELS: tl.constexpr = 127.0 if kind == tl.int8 else 256.0
        SHIFT: tl.constexpr = 0.0 if kind == tl.int8 else 1.0
        MOST: tl.constexpr = 126.0 if kind == tl.int8 else 254.0
        size = tl.abs(value)
        largest = tl.max(size, 0)
        tl.store(scale, largest)
        share = size * (1.0 / tl.maximum(largest, 1.1754943508222875e-38))
        code = tl.floor(tl.sqrt(tl.sqrt(share)) * LEVELS) - SHIFT
        code = tl.minimum(tl.maximum(code, 0.0), MOST)
        low, high = (code + SHIFT) * (1.0 / LEVELS), (code + SHIFT + 1) * (1.0 / LEVELS)
        low, high = low * low, high * high
        low, high = low * low, high * high
        code += (share - low > (draw.to(tl.float32) + 0.5) * (1.0 / 65536.0) * (high - low)).to(tl.float32)
        tl.store(stored + place, tl.where(value < 0, -code, code).to(kind), ok)


@triton.jit
def adam(place, grad, ok, weights, mean, square, scale, numbers, beta1, beta2, eps):
    """New weights of one row after Adam (Kingma and Ba 2015, algorithm 1); its moments are stored."""
    rate, root = tl.load(numbers), tl.load(numbers + 1)
    m = load_moment(mean, place, ok, scale)
    v = load_moment(square, place, ok, scale + 1)
    m += (1 - beta1) * (grad - m)
    v = beta2 * v + (1 - beta2) * grad * grad
    draw = draw_of(place, numbers)
    store_moment(mean, place, ok, m, draw & 0xFFFF, scale)
    store_moment(square, place, ok, v, draw >> 16, scale + 1)
    return tl.load(weights + place, ok, 0.0) - rate * m / (tl.sqrt(v) * root + eps)
