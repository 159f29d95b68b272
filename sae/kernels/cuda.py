"""The selection and the training step of a dictionary on a GPU, in Triton; `reference` defines what they compute.

Everything sums in a fixed order (no atomic additions of floats), so a step gives the same bits every time.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sae.kernels import triton_kernels as kernels
from sae.kernels.reference import batch_top_k as _plain_batch_top_k
from sae.kernels.reference import by_token, ragged
from sae.kernels.reference import norm_crossing as _plain_norm_crossing
from sae.kernels.step_parts import Adam, Decoded, More, Rows

DTYPE = torch.bfloat16  # of stored rows
GROUP = 64  # latents whose largest pre-activation stands for them while the k largest are looked for
LONG = 256  # pairs of one latent that one program adds up; more are added up in parts


def widest(n_latents: int) -> int:
    """The most latents that all tokens keep: the programs hold them at once. Where tokens keep different numbers, their mean."""
    return 512


def rounded(table: Tensor, selection: torch.dtype) -> Tensor:
    """The table [latents, width] as the products read it."""
    return table.bfloat16()


def values_at(pre_acts: Tensor, indices: Tensor, given: Tensor, table: Tensor, bias: Tensor) -> Tensor:
    """Pre-activations [tokens, k] of the selected latents."""
    return pre_acts.gather(1, indices).float()


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@cache
def numbers(n: int, device: torch.device) -> Tensor:
    """0 .. n - 1 in int32, made once, so that recorded kernels find it where it was."""
    return torch.arange(n, dtype=torch.int32, device=device)


def prepare(raw: Tensor, scale: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(raw * scale in float32, that minus `centre` in bfloat16, squared norms [tokens] of the first)."""
    target = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
    given = torch.empty(raw.shape, dtype=torch.bfloat16, device=raw.device)
    squares = torch.empty(len(raw), dtype=torch.float32, device=raw.device)
    kernels.prepare_program[(len(raw),)](
        raw, scale, centre, target, given, squares, WIDTH=raw.shape[1],
        SIZE=triton.next_power_of_2(raw.shape[1]), num_warps=4,
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
    programs = _multiprocessors(given.device)
    kernels.encode_program[(programs,)](
        TensorDescriptor.from_tensor(given, [rows, step]), TensorDescriptor.from_tensor(table, [latents, step]), bias,
        TensorDescriptor.from_tensor(out, [rows, latents]), out if maxima is None else maxima, n, m,
        PROGRAMS=programs, WIDTH=given.shape[1], ROWS=rows, LATENTS=latents, STEP=step, GROUPED=8, MAXIMA=with_maxima, SPAN=GROUP,
        num_warps=8, num_stages=3,
    )  # fmt: skip
    return out, maxima


def fits_groups(n_latents: int, k: int) -> bool:
    """Whether the k largest can be found by the maxima of groups."""
    n_groups = n_latents // GROUP
    return n_latents % GROUP == 0 and k <= n_groups <= 32_768 and k * GROUP <= 16_384


def _maxima(pre_acts: Tensor) -> Tensor:
    n, n_groups = len(pre_acts), pre_acts.shape[1] // GROUP
    maxima = torch.empty(n, n_groups, dtype=pre_acts.dtype, device=pre_acts.device)
    if n:
        kernels.maxima_program[(n, triton.cdiv(n_groups, 32))](
            pre_acts, maxima, n_groups, GROUPS=32, SPAN=GROUP, num_warps=2
        )
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
        kernels.groups_program[(n,)](
            maxima, groups, bounds, maxima.shape[1], K=k, SIZE=size, BITS=bits, num_warps=max(1, size // 2048)
        )
        size = triton.next_power_of_2(k) * GROUP
        kernels.pick_program[(n,)](
            pre_acts, groups, bounds, indices, values, m, K=k, SIZE=size, SPAN=GROUP, BITS=bits,
            num_warps=min(16, max(1, size // 512)),
        )  # fmt: skip
    return indices, values


def top_k_indices(pre_acts: Tensor, k: int) -> Tensor:
    """See `reference.top_k_indices`; plain torch where the row is too short for groups."""
    if fits_groups(pre_acts.shape[1], k) and pre_acts.dtype in (torch.bfloat16, torch.float32):
        return top_k(pre_acts, k)[0].long()
    return pre_acts.topk(k, dim=1, sorted=False).indices.sort(dim=1).values


def batch_top_k(pre_acts: Tensor, k: int) -> Tensor:
    """See `reference.batch_top_k`; looks only into the groups whose maximum is among the largest, as `top_k` does.

    Ties go to the smaller (token, latent).
    """
    n, m = pre_acts.shape
    wanted = n * k
    if m % GROUP or wanted >= n * m // GROUP or pre_acts.dtype not in (torch.bfloat16, torch.float32):
        return _plain_batch_top_k(pre_acts, k)
    pre_acts = pre_acts.contiguous()
    maxima = _maxima(pre_acts).flatten()
    groups = (maxima >= maxima.topk(wanted, sorted=False).values.min()).nonzero()[:, 0]
    found = pre_acts.view(-1, GROUP)[groups]
    least = found.flatten().topk(wanted, sorted=False).values.min()
    keep, at = found > least.clamp_min(0), (found == least) & (least > 0)
    keep |= at & (at.flatten().cumsum(0).view_as(at) <= wanted - keep.sum())
    row, column = keep.nonzero(as_tuple=True)
    places = groups[row] * GROUP + column
    return by_token(torch.div(places, m, rounding_mode="floor"), places % m, n)


def batch_pairs(pre_acts: Tensor, k: int, maxima: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(tokens, latents) [tokens * k] of the largest pre-activations of the whole batch, sorted; none is waited for.

    Those below 0 count where fewer are above. Of equal numbers any may be taken, the same ones every time.
    """
    n, m = pre_acts.shape
    wanted, flat = min(n * k, n * m), pre_acts.contiguous().view(-1)
    if maxima is not None and wanted < maxima.numel():
        groups = maxima.flatten().topk(wanted, sorted=False).indices.sort().values
        found = flat.view(-1, GROUP)[groups].flatten().topk(wanted, sorted=False).indices.sort().values
        places = groups[found // GROUP] * GROUP + found % GROUP
    else:
        places = flat.topk(wanted, sorted=False).indices.sort().values
    tokens = places // m
    return tokens, places - tokens * m


def _filled(pre_acts: Tensor, bounds: Tensor, spares: Tensor | None, counts: Tensor) -> Tensor:
    n, m = pre_acts.shape
    out = torch.full((n, max(1, int(counts.max()) if n else 0)), -1, dtype=torch.int64, device=pre_acts.device)
    if n:
        by_row = spares is not None
        kernels.above_program[(n,)](
            pre_acts, bounds, spares if by_row else counts, counts, out, m, out.shape[1], BLOCK=1024, BY_ROW=by_row,
            FILL=True, num_warps=4,
        )  # fmt: skip
    return out


def above(pre_acts: Tensor, threshold: Tensor | float) -> Tensor:
    """See `reference.above`."""
    pre_acts, (n, m) = pre_acts.contiguous(), pre_acts.shape
    bounds = torch.as_tensor(threshold, dtype=torch.float32, device=pre_acts.device).expand(m).contiguous()
    counts = torch.zeros(n, dtype=torch.int32, device=pre_acts.device)
    if n:
        kernels.above_program[(n,)](
            pre_acts, bounds, counts, counts, counts, m, 1, BLOCK=1024, BY_ROW=False, FILL=False, num_warps=4
        )
    return _filled(pre_acts, bounds, None, counts)


def norm_crossing(pre_acts: Tensor, norm: Tensor) -> Tensor:
    """See `reference.norm_crossing`; finds the crossing by halving, with sums in float32."""
    pre_acts, (n, m) = pre_acts.contiguous(), pre_acts.shape
    if m > 1 << 17 or pre_acts.dtype not in (torch.bfloat16, torch.float32):
        return _plain_norm_crossing(pre_acts, norm)
    bounds = torch.empty(n, dtype=torch.float32, device=pre_acts.device)
    spares, counts = torch.empty(2, n, dtype=torch.int32, device=pre_acts.device)
    size = triton.next_power_of_2(m)
    if n:
        kernels.crossing_program[(n,)](
            pre_acts, norm.float().contiguous(), bounds, spares, counts, m, SIZE=size,
            BITS=16 if pre_acts.dtype == torch.bfloat16 else 32, num_warps=min(16, max(1, size // 2048)),
        )  # fmt: skip
    return _filled(pre_acts, bounds, spares, counts)


def decode(
    values: Tensor, indices: Tensor, table: Tensor, bias: Tensor, target: Tensor, coefficient: Tensor, n_rows: Tensor,
    prefixes: Tensor | None, starts: Tensor | None = None, rectify: bool = True,
    error_dtype: torch.dtype = torch.bfloat16,
) -> Decoded:  # fmt: skip
    """Everything of a token that the decoder says, from its pre-activations `values` [tokens, k].

    The loss is coefficient / 2 times the sum of the squared errors of the first `n_rows` rows, of all prefixes (none: of the
    whole dictionary). An activation of 0 has no gradient; without `rectify` the values are activations, and all have one.
    With `starts` values and indices are [pairs] of a `Flat` code, and all rows count.
    """
    n, width = target.shape
    acts, to_acts = torch.empty_like(values), torch.empty_like(values)
    levels = 1 if prefixes is None else len(prefixes)
    error = torch.empty(levels, n, width, dtype=error_dtype, device=values.device)
    by_token = torch.empty(3, n, dtype=torch.float32, device=values.device)
    if starts is not None:
        block = triton.next_power_of_2(width)
        kernels.decode_ragged_program[(n,)](
            values, indices, starts, table, bias, target, coefficient, by_token if prefixes is None else prefixes,
            acts, error, to_acts, *by_token, n, SIZE=max(2, 8192 // block), WIDTH=width, BLOCK=block, LEVELS=levels,
            RECTIFY=rectify, num_warps=4 if block <= 1024 else 8,
        )  # fmt: skip
        return Decoded(acts, to_acts, error, by_token)
    k = values.shape[1]
    size = triton.next_power_of_2(k)
    block = max(16, min(128, width & -width, 16_384 // size))
    kernels.decode_program[(n,)](
        values, indices, table, bias, target, coefficient, n_rows, by_token if prefixes is None else prefixes,
        acts, error, to_acts, *by_token, n, K=k, SIZE=size, WIDTH=width, BLOCK=block, LEVELS=levels,
        RECTIFY=rectify, num_warps=1 if size * block <= 4096 else 4,
    )  # fmt: skip
    return Decoded(acts, to_acts, error, by_token)


class Pairs:
    """The (token, latent) pairs of a batch sorted by latent; places that hold no latent are named `n_latents`.

    Indices are [tokens, k], or [pairs] of the `tokens` of a `Flat` code.
    """

    def __init__(self, indices: Tensor, n_latents: int, tokens: Tensor | None = None):
        ordered, self.order = indices.flatten().sort(stable=True)
        self.tokens, self.k = (self.order, indices.shape[1]) if tokens is None else (tokens, 0)
        self.offsets = torch.searchsorted(ordered, numbers(n_latents + 1, indices.device), out_int32=True)
        self.n_latents, self.n_parts = n_latents, 2 * len(ordered) // LONG


def count_latents(
    pairs: Pairs, decoded: Decoded, since: Tensor, adam: Adam, more: More | None
) -> tuple[Tensor, Tensor]:
    """Updates the tokens since every latent fired; returns (gradient of b_enc, end of parts)."""
    n_latents = len(since)
    gradient = torch.empty(n_latents, dtype=torch.float32, device=since.device)
    n_parts = torch.empty(n_latents, dtype=torch.int32, device=since.device)
    slots, rows = (more[0], more[3]) if more else (pairs.offsets, gradient)
    kernels.latents_program[(n_latents,)](
        pairs.offsets, pairs.order, decoded.acts, decoded.to_acts, slots, rows, gradient, since, n_parts,
        adam.numbers, MORE=more is not None, SPLIT=LONG, SIZE=32, num_warps=1,
    )  # fmt: skip
    return gradient, n_parts.cumsum(0)


def row_times(row: Tensor, table: Tensor) -> Tensor:
    """row [latents] times a table [latents, width] in bfloat16, summed in float32."""
    return torch.mm(row[None].to(table.dtype), table, out_dtype=torch.float32)[0]


def update_vector(bias: tuple[Tensor, Tensor, Tensor], gradient: Tensor, adam: Adam) -> None:
    """Adam on a vector (weights, both moments), in place."""
    n, size = len(gradient), 256
    kernels.vector_program[(triton.cdiv(n, size),)](*bias, gradient, n, *adam, SIZE=size, num_warps=2)


def update_rows(
    pairs: Pairs, decoded: Decoded, given: Tensor, coefficient: Tensor, ends: Tensor, encoder: Rows, decoder: Rows,
    adam: Adam, more: More | None, prefixes: Tensor | None = None,
) -> None:  # fmt: skip
    """Both weight gradients, Adam and the unit norm of the decoder rows, in place; no gradient is ever written."""
    _for_every_row(pairs, decoded, given, coefficient, ends, encoder, decoder, adam, more, prefixes)


def row_gradients(
    pairs: Pairs, decoded: Decoded, given: Tensor, coefficient: Tensor, ends: Tensor, more: More | None,
    prefixes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Both weight gradients [latents, width] in float32, for an update that sums them over processes."""
    to_encoder, to_decoder = (
        torch.empty(pairs.n_latents, t.shape[-1], dtype=torch.float32, device=given.device)
        for t in (given, decoded.error)
    )
    encoder, decoder = (Rows(t, t, t, t, t) for t in (to_encoder, to_decoder))
    adam = Adam(coefficient, 0.0, 0.0, 0.0)
    _for_every_row(pairs, decoded, given, coefficient, ends, encoder, decoder, adam, more, prefixes, write=True)
    return to_encoder, to_decoder


def apply_rows(to_encoder: Tensor, to_decoder: Tensor, encoder: Rows, decoder: Rows, adam: Adam) -> None:
    """Adam and the unit norm of the decoder rows with gradients that are there, in place."""
    width_in, width_out = to_encoder.shape[1], to_decoder.shape[1]
    blocks = triton.next_power_of_2(width_in), triton.next_power_of_2(width_out)
    kernels.apply_program[(len(to_encoder),)](
        to_encoder, to_decoder, *encoder, *decoder, *adam, WIDTH_IN=width_in, WIDTH_OUT=width_out,
        BLOCK_IN=blocks[0], BLOCK_OUT=blocks[1], num_warps=_warps(max(blocks), encoder),
    )  # fmt: skip


def _warps(block: int, rows: Rows) -> int:
    """Of a program that updates a row: 8-bit codes take many registers for every number."""
    if rows.mean.dtype == torch.int8:
        return 4 if block <= 1024 else 16
    return 4 if block <= 4096 else 8


def _for_every_row(
    pairs: Pairs, decoded: Decoded, given: Tensor, coefficient: Tensor, ends: Tensor, encoder: Rows, decoder: Rows,
    adam: Adam, more: More | None, prefixes: Tensor | None, write: bool = False,
) -> None:  # fmt: skip
    n_latents, device = pairs.n_latents, given.device
    width_in, width_out = given.shape[1], decoded.error.shape[2]
    sizes: dict[str, Any] = dict(
        K=pairs.k, WIDTH_IN=width_in, WIDTH_OUT=width_out, BLOCK_IN=triton.next_power_of_2(width_in),
        BLOCK_OUT=triton.next_power_of_2(width_out), SPLIT=LONG, LEVELS=len(decoded.error),
    )  # fmt: skip
    sizes["num_warps"] = _warps(max(sizes["BLOCK_IN"], sizes["BLOCK_OUT"]), encoder)
    parts = [torch.empty(pairs.n_parts, w, dtype=torch.float32, device=device) for w in (width_in, width_out)]
    ends_of = ends if prefixes is None else prefixes
    read = decoded.acts, decoded.to_acts, decoded.error, given, ends_of, len(given)
    if pairs.n_parts:
        owners = torch.searchsorted(ends, numbers(pairs.n_parts, device).long(), right=True)
        kernels.parts_program[(pairs.n_parts,)](
            owners, ends, pairs.offsets, pairs.order, pairs.tokens, *read, *parts, n_latents, PAIRS=4, **sizes
        )
    slots, *rows = more[:3] if more else (pairs.offsets, *parts)
    kernels.update_program[(n_latents,)](
        pairs.offsets, ends, pairs.order, pairs.tokens, *read, coefficient, *parts, slots, *rows, *encoder, *decoder, *adam,
        MORE=more is not None, PAIRS=1, WRITE=write, **sizes,
    )  # fmt: skip


__all__ = [
    "Adam",
    "Decoded",
    "More",
    "Pairs",
    "Rows",
    "above",
    "apply_rows",
    "batch_pairs",
    "batch_top_k",
    "count_latents",
    "decode",
    "encode",
    "fits_groups",
    "norm_crossing",
    "numbers",
    "prepare",
    "ragged",
    "rounded",
    "row_gradients",
    "row_times",
    "top_k",
    "top_k_indices",
    "update_rows",
    "update_vector",
    "values_at",
    "widest",
]
