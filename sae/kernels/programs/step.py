"""The Triton programs of the training step; `cuda_step` launches them."""

# pyright: reportMissingImports=false

import triton
import triton.language as tl

from sae.kernels.programs.adam import adam, draw_of, store_moment


@triton.jit
def _level(latent, prefixes, LEVELS: tl.constexpr):
    """The first prefix that contains a latent; 0 if there is only the whole dictionary."""
    level = (latent * 0).to(tl.int32)
    for prefix in tl.static_range(LEVELS - 1):
        level += (latent >= tl.load(prefixes + prefix)).to(tl.int32)
    return level


@triton.jit
def decode_program(
    values, indices, table, bias, target, coefficient, n_rows, prefixes,
    acts, error, grad_acts, squares, prefix_squares, counts, n, K: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, LEVELS: tl.constexpr, RECTIFY: tl.constexpr,
):  # fmt: skip
    """One row: activations, x_hat - target, gradients of the activations, squared errors, latents that fired."""
    row = tl.program_id(0).to(tl.int64)
    limit = tl.load(n_rows).to(tl.int64)
    number = tl.arange(0, SIZE)
    ok = number < K
    act = tl.load(values + row * K + number, ok & (number * 0 + row < limit), 0.0)
    if RECTIFY:
        act = tl.maximum(act, 0.0)

    tl.store(acts + row * K + number, act, ok)
    latent = tl.load(indices + row * K + number, ok, 0).to(tl.int64)
    level = _level(latent, prefixes, LEVELS)
    inner = tl.zeros((SIZE,), tl.float32)
    square = tl.zeros((), tl.float32)
    prefix_square = tl.zeros((), tl.float32)

    for start in tl.static_range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < WIDTH
        rows = tl.load(table + latent[:, None] * WIDTH + columns[None, :], ok[:, None] & inside[None, :], 0.0)
        rows = rows.to(tl.float32)
        start_of = tl.load(bias + columns, inside, 0.0) - tl.load(target + row * WIDTH + columns, inside, 0.0)
        start_of = tl.where(inside & (columns * 0 + row < limit), start_of, 0.0)
        left = tl.zeros((BLOCK,), tl.float32)  # the sum of the errors of all prefixes that hold a latent of this one
        for prefix in tl.static_range(LEVELS):
            e = start_of + tl.sum(tl.where(level <= prefix, act, 0.0)[:, None] * rows, 0)
            left += e
            prefix_square += tl.sum(e * e, 0)
            if prefix == LEVELS - 1:
                square += tl.sum(e * e, 0)
        for prefix in tl.static_range(LEVELS):
            tl.store(error + (prefix * n + row) * WIDTH + columns, left.to(error.dtype.element_ty), inside)
            inner += tl.where(level == prefix, tl.sum(rows * left[None, :], 1), 0.0)
            if prefix < LEVELS - 1:
                left -= start_of + tl.sum(tl.where(level <= prefix, act, 0.0)[:, None] * rows, 0)

    inner *= tl.load(coefficient)
    if RECTIFY:
        inner = tl.where(act > 0, inner, 0.0)

    tl.store(grad_acts + row * K + number, inner, ok)
    tl.store(squares + row, square)
    tl.store(prefix_squares + row, prefix_square)
    tl.store(counts + row, tl.sum((act > 0).to(tl.float32), 0))


@triton.jit
def decode_ragged_program(
    values, indices, starts, table, bias, target, coefficient, prefixes,
    acts, error, grad_acts, squares, prefix_squares, counts, n, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, LEVELS: tl.constexpr, RECTIFY: tl.constexpr,
):  # fmt: skip
    """As `decode_program`, for one token of a `FlatCode`, with any number of latents.

    Computes the error of the whole dictionary first, then goes down prefix by prefix, taking away the latents that only
    the larger ones have. So every row of the table is read twice, however many prefixes there are.
    """
    row = tl.program_id(0).to(tl.int64)
    start, end = tl.load(starts + row), tl.load(starts + row + 1)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    e = tl.load(bias + columns, inside, 0.0) - tl.load(target + row * WIDTH + columns, inside, 0.0)
    fired = tl.zeros((), tl.float32)

    for first in range(start, end, SIZE):
        number = first + tl.arange(0, SIZE)
        ok = number < end
        act = tl.load(values + number, ok, 0.0)
        if RECTIFY:
            act = tl.maximum(act, 0.0)
        tl.store(acts + number, act, ok)
        latent = tl.load(indices + number, ok, 0).to(tl.int64)
        is_active = act != 0  # the other rows of the table need not be read
        rows = tl.load(table + latent[:, None] * WIDTH + columns[None, :], is_active[:, None] & inside[None, :], 0.0)
        e += tl.sum(act[:, None] * rows.to(tl.float32), 0)
        fired += tl.sum((act > 0).to(tl.float32), 0)

    tl.store(squares + row, tl.sum(e * e, 0))
    tl.store(counts + row, fired)
    left = tl.zeros((BLOCK,), tl.float32)  # the sum of the errors of all prefixes from this one up
    prefix_square = tl.zeros((), tl.float32)
    scale = tl.load(coefficient)

    for step in tl.static_range(LEVELS):
        level = LEVELS - 1 - step
        prefix_square += tl.sum(e * e, 0)
        left += e
        tl.store(error + (level * n + row) * WIDTH + columns, left.to(error.dtype.element_ty), inside)
        for first in range(start, end, SIZE):
            number = first + tl.arange(0, SIZE)
            latent = tl.load(indices + number, number < end, 0).to(tl.int64)
            ok = (number < end) & (_level(latent, prefixes, LEVELS) == level)
            act = tl.load(acts + number, ok, 0.0)
            rows = tl.load(table + latent[:, None] * WIDTH + columns[None, :], ok[:, None] & inside[None, :], 0.0)
            rows = rows.to(tl.float32)
            inner = tl.sum(rows * left[None, :], 1) * scale
            if RECTIFY:
                inner = tl.where(act > 0, inner, 0.0)
            tl.store(grad_acts + number, inner, ok)
            if LEVELS > 1:
                e -= tl.sum(act[:, None] * rows, 0)

    tl.store(prefix_squares + row, prefix_square)


@triton.jit
def _pair_sums(
    start, end, order, tokens, acts, grad_acts, error, centred, K: tl.constexpr, PAIRS: tl.constexpr,
    WIDTH_IN: tl.constexpr, WIDTH_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """(sum of grad_act * input row, sum of act * error row) over the pairs start .. end of the sorted list.

    A pair's token is its place divided by K or, with K = 0, looked up in `tokens`.
    """
    grad_encoder, grad_decoder = tl.zeros((BLOCK_IN,), tl.float32), tl.zeros((BLOCK_OUT,), tl.float32)
    into, out = tl.arange(0, BLOCK_IN), tl.arange(0, BLOCK_OUT)

    for first in range(start, end, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        ok = pair < end
        place = tl.load(order + pair, ok, 0)
        token = tl.load(tokens + place, ok, 0).to(tl.int64) if K == 0 else place // K
        act, grad_act = tl.load(acts + place, ok, 0.0), tl.load(grad_acts + place, ok, 0.0)
        e = tl.load(error + token[:, None] * WIDTH_OUT + out[None, :], ok[:, None] & (out < WIDTH_OUT)[None, :], 0.0)
        x = tl.load(centred + token[:, None] * WIDTH_IN + into[None, :], ok[:, None] & (into < WIDTH_IN)[None, :], 0.0)
        grad_decoder += tl.sum(act[:, None] * e.to(tl.float32), 0)
        grad_encoder += tl.sum(grad_act[:, None] * x.to(tl.float32), 0)

    return grad_encoder, grad_decoder


@triton.jit
def latents_program(
    offsets, order, acts, grad_acts, slots, aux, gradient, since, n_parts, numbers,
    HAS_AUX: tl.constexpr, SPLIT: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One latent: the gradient of b_enc, the tokens since it fired, the number of parts of its list of pairs."""
    latent = tl.program_id(0)
    start, end = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    total, most = tl.zeros((SIZE,), tl.float32), tl.zeros((SIZE,), tl.float32)

    for first in range(start, end, SIZE):
        pair = first + tl.arange(0, SIZE)
        place = tl.load(order + pair, pair < end, 0)
        total += tl.load(grad_acts + place, pair < end, 0.0)
        most = tl.maximum(most, tl.load(acts + place, pair < end, 0.0))

    grad = tl.sum(total, 0)
    if HAS_AUX:
        slot = tl.load(slots + latent)
        grad += tl.load(aux + slot, slot >= 0, 0.0)

    tl.store(gradient + latent, grad)
    n_tokens = tl.load(numbers + 2).to(tl.int64)
    tl.store(since + latent, tl.where(tl.max(most, 0) > 0, 0, tl.load(since + latent) + n_tokens))
    tl.store(n_parts + latent, tl.where(end - start > SPLIT, tl.cdiv(end - start, SPLIT), 0))


@triton.jit
def vector_program(bias, mean, square, gradient, n, numbers, beta1, beta2, eps, SIZE: tl.constexpr):
    """Adam on SIZE numbers."""
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    ok = place < n
    grad = tl.load(gradient + place, ok, 0.0)
    tl.store(bias + place, adam(place, grad, ok, bias, mean, square, bias, numbers, beta1, beta2, eps), ok)


@triton.jit
def parts_program(
    owners, ends, offsets, order, tokens, acts, grad_acts, error, centred, prefixes, n, encoder_parts, decoder_parts,
    n_latents, SPLIT: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr, LEVELS: tl.constexpr,
    WIDTH_IN: tl.constexpr, WIDTH_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """Sums of both weight gradients over SPLIT pairs of a latent that has aux than SPLIT."""
    part = tl.program_id(0).to(tl.int64)
    latent = tl.load(owners + part)
    if latent < n_latents:
        whole, end = tl.load(offsets + latent), tl.load(offsets + latent + 1)
        number = part - (tl.load(ends + latent) - tl.cdiv(end - whole, SPLIT))
        start = whole + number.to(tl.int32) * SPLIT
        end = min(end, start + SPLIT)
        level_error = error + _level(latent, prefixes, LEVELS).to(tl.int64) * n * WIDTH_OUT
        grad_encoder, grad_decoder = _pair_sums(
            start, end, order, tokens, acts, grad_acts, level_error, centred, K, PAIRS,
            WIDTH_IN, WIDTH_OUT, BLOCK_IN, BLOCK_OUT,
        )  # fmt: skip
        into, out = tl.arange(0, BLOCK_IN), tl.arange(0, BLOCK_OUT)
        tl.store(encoder_parts + part * WIDTH_IN + into, grad_encoder, into < WIDTH_IN)
        tl.store(decoder_parts + part * WIDTH_OUT + out, grad_decoder, out < WIDTH_OUT)


@triton.jit
def _update_row(
    latent, grad, weights, mean, square, scales, rounded, numbers, beta1, beta2, eps,
    UNIT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adam on one row of a table, UNIT: its unit norm; and the weights in bfloat16."""
    columns = tl.arange(0, BLOCK)
    ok = columns < WIDTH
    place, scale = latent * WIDTH + columns, scales + 2 * latent
    if UNIT:
        row = tl.load(weights + place, ok, 0.0)
        grad -= tl.sum(grad * row, 0) * row
    new = adam(place, grad, ok, weights, mean, square, scale, numbers, beta1, beta2, eps)
    if UNIT:
        new = new / tl.maximum(tl.sqrt(tl.sum(new * new, 0)), 1e-12)
    tl.store(weights + place, new, ok)
    tl.store(rounded + place, new.to(tl.bfloat16), ok)


@triton.jit
def apply_program(
    gradients, weights, mean, square, scales, rounded, numbers, beta1, beta2, eps,
    PARTS: tl.constexpr, UNIT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One latent: the update of its row in one table, with a gradient that is there in PARTS."""
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    grad = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(PARTS):
        place = (part * tl.num_programs(0) + latent) * WIDTH + columns
        grad += tl.load(gradients + place, columns < WIDTH, 0.0).to(tl.float32)
    _update_row(
        latent, grad, weights, mean, square, scales, rounded, numbers, beta1, beta2, eps, UNIT, WIDTH, BLOCK
    )  # fmt: skip


@triton.jit
def gradients_program(
    offsets, ends, order, tokens, weights_of_pairs, source, prefixes, n, coefficient, parts, slots, aux, out, numbers,
    HAS_AUX: tl.constexpr, SPLIT: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr, LEVELS: tl.constexpr,
    SCALED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One latent: the gradient of its row in one table, written down; SCALED: times the coefficient."""
    latent = tl.program_id(0).to(tl.int64)
    start, end = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    columns = tl.arange(0, BLOCK)
    ok = columns < WIDTH
    grad = tl.zeros((BLOCK,), tl.float32)
    if end - start <= SPLIT:
        rows = source + _level(latent, prefixes, LEVELS).to(tl.int64) * n * WIDTH
        for first in range(start, end, PAIRS):
            pair = first + tl.arange(0, PAIRS)
            is_pair = pair < end
            place = tl.load(order + pair, is_pair, 0)
            token = tl.load(tokens + place, is_pair, 0).to(tl.int64) if K == 0 else place // K
            weight = tl.load(weights_of_pairs + place, is_pair, 0.0)
            row = tl.load(rows + token[:, None] * WIDTH + columns[None, :], is_pair[:, None] & ok[None, :], 0.0)
            grad += tl.sum(weight[:, None] * row.to(tl.float32), 0)
    else:
        last = tl.load(ends + latent)
        for part in range(last - tl.cdiv(end - start, SPLIT), last):
            grad += tl.load(parts + part * WIDTH + columns, ok, 0.0)

    if SCALED:
        grad *= tl.load(coefficient)
    if HAS_AUX:
        slot = tl.load(slots + latent)
        if slot >= 0:
            grad += tl.load(aux + slot * WIDTH + columns, ok, 0.0)
    place = latent * WIDTH + columns
    store_moment(out, place, ok, grad, draw_of(place, numbers) & 0xFFFF, out)


@triton.jit
def update_program(
    offsets, ends, order, tokens, acts, grad_acts, error, centred, prefixes, n, coefficient, encoder_parts, decoder_parts,
    slots, encoder_aux, decoder_aux,
    encoder, encoder_mean, encoder_square, encoder_scales, encoder_rounded,
    decoder, decoder_mean, decoder_square, decoder_scales, decoder_rounded,
    numbers, beta1, beta2, eps, HAS_AUX: tl.constexpr, SPLIT: tl.constexpr, K: tl.constexpr, PAIRS: tl.constexpr,
    LEVELS: tl.constexpr,
    WIDTH_IN: tl.constexpr, WIDTH_OUT: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    """One latent: both weight gradients and the update with them."""
    latent = tl.program_id(0).to(tl.int64)
    start, end = tl.load(offsets + latent), tl.load(offsets + latent + 1)
    into, out = tl.arange(0, BLOCK_IN), tl.arange(0, BLOCK_OUT)
    in_ok, out_ok = into < WIDTH_IN, out < WIDTH_OUT
    if end - start <= SPLIT:
        level_error = error + _level(latent, prefixes, LEVELS).to(tl.int64) * n * WIDTH_OUT
        grad_encoder, grad_decoder = _pair_sums(
            start, end, order, tokens, acts, grad_acts, level_error, centred, K, PAIRS,
            WIDTH_IN, WIDTH_OUT, BLOCK_IN, BLOCK_OUT,
        )  # fmt: skip
    else:
        grad_encoder, grad_decoder = tl.zeros((BLOCK_IN,), tl.float32), tl.zeros((BLOCK_OUT,), tl.float32)
        last = tl.load(ends + latent)
        for part in range(last - tl.cdiv(end - start, SPLIT), last):
            grad_encoder += tl.load(encoder_parts + part * WIDTH_IN + into, in_ok, 0.0)
            grad_decoder += tl.load(decoder_parts + part * WIDTH_OUT + out, out_ok, 0.0)

    grad_decoder *= tl.load(coefficient)
    if HAS_AUX:
        slot = tl.load(slots + latent)
        if slot >= 0:
            grad_encoder += tl.load(encoder_aux + slot * WIDTH_IN + into, in_ok, 0.0)
            grad_decoder += tl.load(decoder_aux + slot * WIDTH_OUT + out, out_ok, 0.0)

    _update_row(
        latent, grad_encoder, encoder, encoder_mean, encoder_square, encoder_scales, encoder_rounded,
        numbers, beta1, beta2, eps, False, WIDTH_IN, BLOCK_IN,
    )  # fmt: skip
    _update_row(
        latent, grad_decoder, decoder, decoder_mean, decoder_square, decoder_scales, decoder_rounded,
        numbers, beta1, beta2, eps, True, WIDTH_OUT, BLOCK_OUT,
    )  # fmt: skip
