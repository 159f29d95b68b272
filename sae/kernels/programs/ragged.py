"""The Triton programs that keep a different number of latents per token; `cuda_ragged` launches them.

Latents lie in groups of SPAN. A token's groups that may hold a kept latent are listed, at most ROOM of them; a token with
more (n_listed > ROOM) has every group looked at instead.
"""

# pyright: reportMissingImports=false

import triton
import triton.language as tl

from sae.kernels.programs.selection import _crossing, _ordered, _spare


@triton.jit
def hit_groups_program(hits, groups, n_listed, counts, n_groups, ROOM: tl.constexpr, SIZE: tl.constexpr):
    """The groups of one row in which something is kept, ascending, and how many latents are kept in all."""
    row = tl.program_id(0)
    numbers = tl.arange(0, SIZE)
    hits_of_groups = tl.load(hits + row.to(tl.int64) * n_groups + numbers, numbers < n_groups, 0).to(tl.int32)
    is_hit = hits_of_groups > 0
    place = tl.cumsum(is_hit.to(tl.int32), 0) - 1
    tl.store(groups + row * ROOM + place, numbers, is_hit & (place < ROOM))
    tl.store(n_listed + row, tl.sum(is_hit.to(tl.int32), 0))
    tl.store(counts + row, tl.sum(hits_of_groups, 0))


@triton.jit
def crossing_groups_program(maxima, norms, groups, lows, n_listed, n_groups, ROOM: tl.constexpr, SIZE: tl.constexpr):
    """The groups of one row that can hold a kept latent, ascending, and a key that the row's bound cannot be under.

    The maxima of groups are some of the latents. If those from a key on reach the norm, all latents from there on do.
    """
    row = tl.program_id(0)
    numbers = tl.arange(0, SIZE)
    ok = numbers < n_groups
    loaded = tl.load(maxima + row.to(tl.int64) * n_groups + numbers, ok, 0.0)
    keys = tl.where(ok, _ordered(loaded, 16), -1)
    values = tl.maximum(loaded.to(tl.float32), 0.0)
    norm = tl.load(norms + row)
    low, high = tl.min(keys, 0) * 0, tl.max(keys, 0)

    while low < high:
        middle = low + (high - low + 1) // 2
        reached = tl.sum(tl.where(keys >= middle, values * values, 0.0), 0) >= norm * norm
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle - 1)

    take = (keys >= low) & (keys > 0)
    place = tl.cumsum(take.to(tl.int32), 0) - 1
    tl.store(groups + row * ROOM + place, numbers, take & (place < ROOM))
    tl.store(lows + row, low)
    tl.store(n_listed + row, tl.sum(take.to(tl.int32), 0))


@triton.jit
def listed_crossing_program(
    pre_acts, norms, groups, lows, n_listed, bounds, spares, counts, n_latents, ROOM: tl.constexpr, SPAN: tl.constexpr
):  # fmt: skip
    """As `crossing_program`, for one row whose groups are all listed."""
    row = tl.program_id(0)
    n_groups = tl.load(n_listed + row)
    if n_groups <= ROOM:
        number = tl.arange(0, ROOM * SPAN)
        group = tl.load(groups + row * ROOM + number // SPAN, number // SPAN < n_groups, 0)
        latents = group * SPAN + number % SPAN
        ok = (number // SPAN < n_groups) & (latents < n_latents)
        loaded = tl.load(pre_acts + row.to(tl.int64) * n_latents + latents, ok, 0.0)
        bound, spare, count = _crossing(loaded, _ordered(loaded, 16), tl.load(norms + row), tl.load(lows + row))
        tl.store(bounds + row, bound)
        tl.store(spares + row, spare)
        tl.store(counts + row, count)


@triton.jit
def _reached(pre_acts, n_latents, least, BLOCK: tl.constexpr):
    """(energy, number) of one row's latents with keys from `least` on."""
    energy, count = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.int32)
    for start in range(0, n_latents, BLOCK):
        latents = start + tl.arange(0, BLOCK)
        loaded = tl.load(pre_acts + latents, latents < n_latents, 0.0)
        take = (_ordered(loaded, 16) >= least) & (loaded > 0)
        energy += tl.where(take, loaded.to(tl.float32) * loaded.to(tl.float32), 0.0)
        count += take.to(tl.int32)
    return tl.sum(energy, 0), tl.sum(count, 0)


@triton.jit
def _float_of(key):
    """The positive bfloat16 of a key, in float32."""
    return key.to(tl.int16).to(tl.bfloat16, bitcast=True).to(tl.float32)


@triton.jit
def whole_crossing_program(
    pre_acts, norms, lows, n_listed, bounds, spares, counts, n_latents, ROOM: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """As `crossing_program`, for one row with more groups than the list holds, and any number of latents."""
    row = tl.program_id(0)
    if tl.load(n_listed + row) > ROOM:
        row_acts = pre_acts + row.to(tl.int64) * n_latents
        norm, low = tl.load(norms + row), tl.load(lows + row)
        high = low * 0 + 0x7F7F  # the largest finite bfloat16
        while low < high:
            middle = low + (high - low + 1) // 2
            energy, _ = _reached(row_acts, n_latents, middle, BLOCK)
            low = tl.where(energy >= norm * norm, middle, low)
            high = tl.where(energy >= norm * norm, high, middle - 1)

        bound = _float_of(low)
        energy, n_over = _reached(row_acts, n_latents, low + 1, BLOCK)
        _, n_from = _reached(row_acts, n_latents, low, BLOCK)
        spare = _spare(norm, energy, bound, n_over, n_from - n_over)
        spare = tl.where(low > 0, spare, 0)
        tl.store(bounds + row, bound)
        tl.store(spares + row, spare)
        tl.store(counts + row, n_over + spare)


@triton.jit
def fill_program(
    pre_acts, bounds, spares, groups, n_listed, starts, tokens, latents_out, values, n_latents,
    BY_ROW: tl.constexpr, ROOM: tl.constexpr, PART: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """One row: writes its pairs from starts[row] on, by ascending latent.

    Kept is what is above the row's bound and the first `spare` at it (BY_ROW), or above every latent's own bound.
    """
    row = tl.program_id(0)
    start, end = tl.load(starts + row), tl.load(starts + row + 1)
    n_own = tl.load(n_listed + row)
    is_listed = n_own <= ROOM
    n_groups = tl.where(is_listed, n_own, tl.cdiv(n_latents, SPAN))
    n_groups = tl.where(end > start, n_groups, 0)
    bound, spare = 0.0, 0
    if BY_ROW:
        bound, spare = tl.load(bounds + row), tl.load(spares + row)
    n_over, n_at = 0, 0

    for first in range(0, n_groups, PART):
        number = first + tl.arange(0, PART)
        listed = tl.load(groups + row * ROOM + number, is_listed & (number < n_groups), 0)
        latents = tl.where(is_listed, listed, number)[:, None] * SPAN + tl.arange(0, SPAN)[None, :]
        inside = (number < n_groups)[:, None] & (latents < n_latents)
        value = tl.load(pre_acts + row.to(tl.int64) * n_latents + latents, inside, 0.0).to(tl.float32)
        if BY_ROW:
            over, at = inside & (value > bound), inside & (value == bound) & (value > 0)
        else:
            over, at = inside & (value > tl.load(bounds + latents, inside, float("inf"))), inside & (latents < 0)
        both = over.to(tl.int32) + at.to(tl.int32) * 65536  # counts both at once; a part has fewer latents
        of_groups = tl.sum(both, 1)
        ranks = (tl.cumsum(of_groups, 0) - of_groups)[:, None] + tl.cumsum(both, 1)
        rank_over, rank_at = n_over + (ranks & 65535), n_at + (ranks >> 16)
        total = tl.sum(of_groups, 0)
        n_over, n_at = n_over + (total & 65535), n_at + (total >> 16)
        take = over | (at & (rank_at <= spare))
        place = start + rank_over + tl.minimum(rank_at, spare) - 1
        take = take & (place < end)
        tl.store(tokens + place, latents * 0 + row, take)
        tl.store(latents_out + place, latents, take)
        tl.store(values + place, value, take)


@triton.jit
def segment_sums_program(values, offsets, order, out, ORDERED: tl.constexpr, SIZE: tl.constexpr):
    """One segment's sum of values, read through `order` if ORDERED."""
    segment = tl.program_id(0)
    total = tl.zeros((SIZE,), tl.float32)
    start, end = tl.load(offsets + segment), tl.load(offsets + segment + 1)
    for first in range(start, end, SIZE):
        place = first + tl.arange(0, SIZE)
        if ORDERED:
            total += tl.load(values + tl.load(order + place, place < end, 0), place < end, 0.0)
        else:
            total += tl.load(values + place, place < end, 0.0)
    tl.store(out + segment, tl.sum(total, 0))
