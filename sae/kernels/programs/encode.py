"""The Triton programs that prepare and encode a batch; `cuda_step` launches them."""

# pyright: reportMissingImports=false

import triton
import triton.language as tl


@triton.jit
def prepare_program(raw, scale, centre, target, centred, squares, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    """One row: raw * scale, that minus the centre in bfloat16, and its squared norm."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, SIZE)
    ok = columns < WIDTH
    y = tl.load(raw + row * WIDTH + columns, ok, 0.0).to(tl.float32) * tl.load(scale + columns, ok, 0.0)
    tl.store(target + row * WIDTH + columns, y, ok)
    tl.store(squares + row, tl.sum(y * y, 0))
    y -= tl.load(centre + columns, ok, 0.0)
    tl.store(centred + row * WIDTH + columns, y.to(tl.bfloat16), ok)


@triton.jit
def encode_program(
    centred, table, bias, bounds, row_scales, latent_scales, out, of_groups, n_rows, n_latents, PROGRAMS: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, LATENTS: tl.constexpr, STEP: tl.constexpr, GROUPED: tl.constexpr,
    MAXIMA: tl.constexpr, HITS: tl.constexpr, SPAN: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Tiles of centred table^T + bias in bfloat16; of every SPAN latents the maximum, or how many are over their bounds.

    SCALED: rows and latents are in 8 bits, and their products multiples of both scales.
    """
    down, across = tl.cdiv(n_rows, ROWS), tl.cdiv(n_latents, LATENTS)
    # One program does many tiles, so that the next tile is read while the last one is written.
    for tile in tl.range(tl.program_id(0), down * across, PROGRAMS, flatten=True):
        first = tile // (GROUPED * across) * GROUPED  # tiles at work together share rows and latents in the cache
        size = min(down - first, GROUPED)
        row_block, latent_block = first + (tile % (GROUPED * across)) % size, (tile % (GROUPED * across)) // size
        total = tl.zeros((ROWS, LATENTS), tl.float32)
        for start in range(0, WIDTH, STEP):
            a = centred.load([row_block * ROWS, start])
            b = table.load([latent_block * LATENTS, start])
            total = tl.dot(a, b.T, total)
        latents = latent_block * LATENTS + tl.arange(0, LATENTS)
        if SCALED:
            scaled_rows = row_block * ROWS + tl.arange(0, ROWS)
            total *= tl.load(row_scales + scaled_rows, scaled_rows < n_rows, 0.0)[:, None]
            total *= tl.load(latent_scales + latents, latents < n_latents, 0.0)[None, :]
        rounded = (total + tl.load(bias + latents, latents < n_latents, 0.0)[None, :]).to(tl.bfloat16)
        out.store([row_block * ROWS, latent_block * LATENTS], rounded)
        if MAXIMA or HITS:
            rows, n_groups = row_block * ROWS + tl.arange(0, ROWS), tl.cdiv(n_latents, SPAN)
            groups = latent_block * (LATENTS // SPAN) + tl.arange(0, LATENTS // SPAN)
            inside = (rows < n_rows)[:, None] & (groups < n_groups)[None, :]
            places = rows.to(tl.int64)[:, None] * n_groups + groups[None, :]
            if HITS:
                bound = tl.load(bounds + latents, latents < n_latents, float("inf"))
                over = (rounded.to(tl.float32) > bound[None, :]).to(tl.int32)
                n_over = tl.sum(tl.reshape(over, (ROWS, LATENTS // SPAN, SPAN)), 2)
                tl.store(of_groups + places, n_over.to(tl.int8), inside)
            else:
                best = tl.max(tl.reshape(rounded.to(tl.float32), (ROWS, LATENTS // SPAN, SPAN)), 2)
                tl.store(of_groups + places, best.to(tl.bfloat16), inside)
