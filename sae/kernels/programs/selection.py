"""The Triton programs that select latents; `cuda_selection` launches them."""

# pyright: reportMissingImports=false

import triton
import triton.language as tl


@triton.jit
def maxima_program(pre_acts, maxima, n_groups, GROUPS: tl.constexpr, SPAN: tl.constexpr):
    """The maxima of every SPAN latents of GROUPS groups of one row."""
    row = tl.program_id(0).to(tl.int64)
    groups = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    places = groups[:, None] * SPAN + tl.arange(0, SPAN)[None, :]
    inside = (groups < n_groups)[:, None] & (places >= 0)
    loaded = tl.load(pre_acts + row * n_groups * SPAN + places, inside, float("-inf"))
    tl.store(maxima + row * n_groups + groups, tl.max(loaded, 1), groups < n_groups)


@triton.jit
def _ordered(values, BITS: tl.constexpr):
    """Integers in the order of the floats: their bits, with those of negative numbers reversed."""
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

    At least K keys reach `low` and none is over `high`: the bound is loaded by halving.
    """
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)  # the upper middle; high - low may not fit
        enough = tl.sum((keys >= middle).to(tl.int32), 0) >= K
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)

    above, at = keys > low, keys == low
    counts = tl.cumsum(above.to(tl.int32) + at.to(tl.int32) * 65536, 0)  # both at once
    n_above, n_at = counts & 65535, counts >> 16
    spare = K - tl.max(n_above, 0)

    return above | (at & (n_at <= spare)), n_above + tl.minimum(n_at, spare) - 1, low


@triton.jit
def groups_program(maxima, groups, bounds, n_groups, K: tl.constexpr, SIZE: tl.constexpr, BITS: tl.constexpr):
    """The K groups of one row with the largest maxima, ascending, and the K-th largest maximum."""
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
def pick_program(
    pre_acts, groups, bounds, indices, values, n_latents, K: tl.constexpr, SIZE: tl.constexpr, SPAN: tl.constexpr,
    BITS: tl.constexpr,
):  # fmt: skip
    """The K largest values of one row inside its K groups, by ascending latent."""
    row = tl.program_id(0)
    number = tl.arange(0, SIZE)
    ok = number // SPAN < K
    group = tl.load(groups + row * K + number // SPAN, ok, 0)
    latents = group * SPAN + number % SPAN
    loaded = tl.load(pre_acts + row.to(tl.int64) * n_latents + latents, ok, float("-inf"))
    low = tl.load(bounds + row)
    keys = tl.where(ok, _ordered(loaded, BITS), low - 1)
    take, place, _ = _chosen(keys, low, tl.max(keys, 0), K)
    tl.store(indices + row * K + place, latents, take)
    tl.store(values + row * K + place, loaded.to(tl.float32), take)


@triton.jit
def _crossing(loaded, keys, norm, low):
    """(bound, spare, how many are kept) of one row: what is above the bound and the first `spare` at it have the
    nearest norm.

    `low` is a key that the bound is not under; 0 is the key of 0.0, which is never kept.
    """
    values = tl.maximum(loaded.to(tl.float32), 0.0)
    high = tl.max(keys, 0)

    while low < high:
        middle = low + (high - low + 1) // 2
        reached = tl.sum(tl.where(keys >= middle, values * values, 0.0), 0) >= norm * norm
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle - 1)

    over, at = keys > low, keys == low
    energy, n_over = tl.sum(tl.where(over, values * values, 0.0), 0), tl.sum(over.to(tl.int32), 0)
    bound = tl.max(tl.where(at, values, 0.0), 0)
    most = tl.sum(at.to(tl.int32), 0)
    spare = _spare(norm, energy, bound, n_over, most)
    spare = tl.where(low > 0, spare, 0)  # the norm is never reached: all that is positive is kept
    return bound, spare, n_over + spare


@triton.jit
def _spare(norm, energy, bound, n_over, most):
    """How many of the `most` latents at the bound bring the norm nearest, if those over it have this energy."""
    wanted = tl.minimum(tl.ceil((norm * norm - energy) / tl.maximum(bound * bound, 1e-30)), 1e9).to(tl.int32)
    spare = tl.minimum(tl.maximum(wanted, 1), most)
    short = norm - tl.sqrt(energy + (spare - 1) * bound * bound)
    nearer = short <= tl.sqrt(energy + spare * bound * bound) - norm
    return spare - (nearer & (n_over + spare > 1)).to(tl.int32)


@triton.jit
def crossing_program(
    pre_acts, norms, bounds, spares, counts, n_latents, SIZE: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Bound, spare and count of one row; see `_crossing`."""
    row = tl.program_id(0)
    latents = tl.arange(0, SIZE)
    loaded = tl.load(pre_acts + row.to(tl.int64) * n_latents + latents, latents < n_latents, 0.0)
    keys = _ordered(loaded, BITS)
    bound, spare, count = _crossing(loaded, keys, tl.load(norms + row), tl.min(keys, 0) * 0)
    tl.store(bounds + row, bound)
    tl.store(spares + row, spare)
    tl.store(counts + row, count)


@triton.jit
def above_program(
    pre_acts, bounds, spares, counts, out, n_latents, width, BLOCK: tl.constexpr, BY_ROW: tl.constexpr, FILL: tl.constexpr
):  # fmt: skip
    """One row: the latents above its bound and the first `spare` at it (BY_ROW), or above every latent's own bound.

    Counts them, or, with FILL, writes their indices into `out` [tokens, width].
    """
    row = tl.program_id(0).to(tl.int64)
    n_kept, n_at = 0, 0

    for start in range(0, n_latents, BLOCK):
        latents = start + tl.arange(0, BLOCK)
        inside = latents < n_latents
        value = tl.load(pre_acts + row * n_latents + latents, inside, 0.0).to(tl.float32)
        if BY_ROW:
            bound = tl.load(bounds + row)
            at = inside & (value == bound)
            take = (inside & (value > bound)) | (at & (n_at + tl.cumsum(at.to(tl.int32), 0) <= tl.load(spares + row)))
            n_at += tl.sum(at.to(tl.int32), 0)
        else:
            take = inside & (value > tl.load(bounds + latents, inside, 0.0))
        if FILL:
            tl.store(out + row * width + n_kept + tl.cumsum(take.to(tl.int32), 0) - 1, latents, take)
        n_kept += tl.sum(take.to(tl.int32), 0)

    if not FILL:
        tl.store(counts + row, n_kept)
