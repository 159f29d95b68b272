"""The training step of a dictionary on a GPU, in Triton; it satisfies `StepKernels`.

Everything is summed in a fixed order (no atomic additions of floats), so a step gives the same bits every time.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sae.kernels.cuda_pairs import LONG, SortedPairs, numbers
from sae.kernels.cuda_selection import GROUP, batch_pairs, fits_groups, group_of, top_k
from sae.kernels.programs import encode as encode_programs
from sae.kernels.programs import step as programs
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

DTYPE = torch.bfloat16  # of the stored rows of input and error


def widest(n_latents: int) -> int:
    """The most latents per token (on average, if tokens keep different numbers): a program holds them all at once."""
    return 512


def rounded(table: Float[Tensor, "m d"], selection_dtype: torch.dtype) -> Float[Tensor, "m d"]:
    """The table [m, d] as matrix products read it."""
    return table.bfloat16()


def values_at(
    pre_acts: Float[Tensor, "n m"] | None,
    indices: Int[Tensor, "n k"],
    centred: Float[Tensor, "n d"],
    table: Float[Tensor, "m d"],
    *,
    bias: Float[Tensor, " m"],
) -> Float[Tensor, "n k"]:
    """Pre-activations [tokens, k] of the selected latents."""
    assert pre_acts is not None  # on a GPU there always are
    return pre_acts.gather(1, indices).float()


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def prepare(raw: Float[Tensor, "n d"], scale: Float[Tensor, " d"], centre: Float[Tensor, " d"]) -> PreparedRows:
    """(raw * scale in float32, that minus `centre` in bfloat16, squared norms [tokens] of the first)."""
    target = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
    centred = torch.empty(raw.shape, dtype=torch.bfloat16, device=raw.device)
    squares = torch.empty(len(raw), dtype=torch.float32, device=raw.device)
    encode_programs.prepare_program[(len(raw),)](
        raw, scale, centre, target, centred, squares, WIDTH=raw.shape[1],
        SIZE=triton.next_power_of_2(raw.shape[1]), num_warps=4,
    )  # fmt: skip
    return PreparedRows(target, centred, squares)


def encode(
    centred: Float[Tensor, "n d"], table: Float[Tensor, "m d"], bias: Float[Tensor, " m"], with_maxima: bool = True
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n groups"] | None]:
    """(pre-activations [tokens, latents] in bfloat16, the largest of every `group_of(latents)` latents or None).

    `centred` [tokens, width] and `table` [latents, width] in bfloat16, the width a multiple of 8; sums in float32.
    """
    if with_maxima:
        return encode_with_maxima(centred, table, bias, group_of(len(table)))
    return _encode(centred, table, bias, of_groups=None, bounds=None, span=GROUP), None


def encode_with_maxima(
    centred: Float[Tensor, "n d"], table: Float[Tensor, "m d"], bias: Float[Tensor, " m"], span: int
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n groups"]]:
    """As `encode`, with the largest of every `span` latents."""
    maxima = _of_groups(centred, table, torch.bfloat16, span)
    return _encode(centred, table, bias, of_groups=maxima, bounds=None, span=span), maxima


def encode_with_hits(
    centred: Float[Tensor, "n d"], table: Float[Tensor, "m d"], bias: Float[Tensor, " m"], bounds: Float[Tensor, " m"]
) -> tuple[Float[Tensor, "n m"], Int[Tensor, "n groups"]]:
    """As `encode`, with the number of latents over their own bounds among every `GROUP`, in int8."""
    hits = _of_groups(centred, table, torch.int8, GROUP)
    return _encode(centred, table, bias, of_groups=hits, bounds=bounds, span=GROUP), hits


def encode_quantised(
    rows: tuple[Float[Tensor, "n d"], Float[Tensor, " n"]],
    latents: tuple[Float[Tensor, "m d"], Float[Tensor, " m"]],
    bias: Float[Tensor, " m"],
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n groups"]]:
    """As `encode`, from rows in 8 bits with their scales (`cuda_proposals.QuantisedRows`)."""
    (centred, row_scales), (table, latent_scales) = rows, latents
    span = group_of(len(table))
    maxima = _of_groups(centred, table, torch.bfloat16, span)
    scales = row_scales, latent_scales
    return _encode(centred, table, bias, of_groups=maxima, bounds=None, span=span, scales=scales), maxima


def _of_groups(centred: Tensor, table: Tensor, dtype: torch.dtype, span: int) -> Tensor:
    return torch.empty(len(centred), triton.cdiv(len(table), span), dtype=dtype, device=centred.device)


def _encode(
    centred: Tensor,
    table: Tensor,
    bias: Tensor,
    *,
    of_groups: Tensor | None,
    bounds: Tensor | None,
    span: int,
    scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    n, m = len(centred), len(table)
    out = torch.empty(n, m, dtype=torch.bfloat16, device=centred.device)
    # The fastest of the tiles tried on an H100; 500 us where cuBLAS, which gives no maxima, needs 469 (LOG.md).
    rows, latents, step = 128, 256, 64 if scales is None else 128
    n_programs = _multiprocessors(centred.device)  # one per multiprocessor; each does many tiles
    # A program wants a pointer, even if it reads and writes nothing there.
    encode_programs.encode_program[(n_programs,)](
        TensorDescriptor.from_tensor(centred, [rows, step]), TensorDescriptor.from_tensor(table, [latents, step]), bias,
        bias if bounds is None else bounds, *(scales or (bias, bias)), TensorDescriptor.from_tensor(out, [rows, latents]),
        out if of_groups is None else of_groups, n, m, PROGRAMS=n_programs, WIDTH=centred.shape[1], ROWS=rows,
        LATENTS=latents, STEP=step, GROUPED=32, MAXIMA=of_groups is not None and bounds is None, HITS=bounds is not None,
        SPAN=span, SCALED=scales is not None, num_warps=8, num_stages=3,
    )  # fmt: skip
    return out


def decode(
    values: Float[Tensor, " ..."],
    decoding: DecodeInput,
    rectify: bool = True,
    error_dtype: torch.dtype = torch.bfloat16,
) -> Decoded:
    """Everything that the decoder says of a batch, from its selected pre-activations `values` [n, k] or [p].

    The loss is coefficient / 2 times the sum of the squared errors of the first `n_counted` rows, over all prefixes. An
    activation of 0 has no gradient; without `rectify` the values are activations, and all of them have one.
    """
    latents, table, bias, target, coefficient, n_counted, prefixes, starts = decoding
    n, width = target.shape
    acts, grad_acts = torch.empty_like(values), torch.empty_like(values)
    n_levels = 1 if prefixes is None else len(prefixes)
    error = torch.empty(n_levels, n, width, dtype=error_dtype, device=values.device)
    by_token = torch.empty(3, n, dtype=torch.float32, device=values.device)
    prefix_ends = by_token if prefixes is None else prefixes  # a program wants a pointer, even if it reads nothing

    if starts is not None:
        block = triton.next_power_of_2(width)
        programs.decode_ragged_program[(n,)](
            values, latents, starts, table, bias, target, coefficient, prefix_ends,
            acts, error, grad_acts, *by_token, n, SIZE=max(2, 8192 // block), WIDTH=width, BLOCK=block,
            LEVELS=n_levels, RECTIFY=rectify, num_warps=4 if block <= 1024 else 8,
        )  # fmt: skip
        return Decoded(acts, grad_acts, error, by_token)

    k = values.shape[1]
    size = triton.next_power_of_2(k)
    block = max(16, min(128, width & -width, 16_384 // size))
    # Warps that wait for each other's sums cost more than they bring, unless a row is large (LOG.md).
    num_warps = 1 if size * block <= 4096 else 4
    programs.decode_program[(n,)](
        values, latents, table, bias, target, coefficient, n_counted, prefix_ends,
        acts, error, grad_acts, *by_token, n, K=k, SIZE=size, WIDTH=width, BLOCK=block,
        LEVELS=n_levels, RECTIFY=rectify, num_warps=num_warps,
    )  # fmt: skip

    return Decoded(acts, grad_acts, error, by_token)


def sorted_pairs(latents: Int[Tensor, " ..."], n_latents: int, tokens: Int[Tensor, " p"] | None = None) -> SortedPairs:
    """The pairs sorted by latent."""
    return SortedPairs(latents, n_latents, tokens)


def bias_gradient_and_firings(
    pairs: SortedPairs, decoded: Decoded, since: Int[Tensor, " m"], adam: AdamStep, *, aux: AuxGradients | None
) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"]]:
    """(gradient of b_enc, end of every latent's parts); updates the tokens since every latent fired."""
    n_latents = len(since)
    gradient = torch.empty(n_latents, dtype=torch.float32, device=since.device)
    n_parts = torch.empty(n_latents, dtype=torch.int32, device=since.device)
    slots, grad_b_enc = (aux.slots, aux.b_enc) if aux else (pairs.offsets, gradient)
    programs.latents_program[(n_latents,)](
        pairs.offsets, pairs.order, decoded.acts, decoded.grad_acts, slots, grad_b_enc, gradient, since, n_parts,
        adam.numbers, HAS_AUX=aux is not None, SPLIT=LONG, SIZE=32, num_warps=1,
    )  # fmt: skip

    return gradient, n_parts.cumsum(0)


def row_times(row: Float[Tensor, " m"], table: Float[Tensor, "m d"]) -> Float[Tensor, " d"]:
    """row [m] times a table [m, d] in bfloat16, summed in float32."""
    return torch.mm(row[None].to(table.dtype), table, out_dtype=torch.float32)[0]


def update_vector(state: ParameterState, gradient: Float[Tensor, " n"], adam: AdamStep) -> None:
    """Adam on a vector (weights and both moments), in place."""
    n, size = len(gradient), 256
    programs.vector_program[(triton.cdiv(n, size),)](*state, gradient, n, *adam, SIZE=size, num_warps=2)


def update_rows(
    sums: RowSums,
    encoder: WeightTable,
    decoder: WeightTable,
    *,
    adam: AdamStep,
    aux: AuxGradients | None,
    prefixes: Int[Tensor, " l"] | None = None,
) -> None:
    """Both weight gradients, Adam and the unit norm of the decoder rows, in place; no gradient is ever written."""
    inputs, sizes, parts = _summed_parts(sums, prefixes)
    aux_rows = (aux.slots, aux.w_enc, aux.w_dec) if aux else (sums.pairs.offsets, *parts)
    block = max(sizes["BLOCK_IN"], sizes["BLOCK_OUT"])
    programs.update_program[(sums.pairs.n_latents,)](
        sums.pairs.offsets, sums.ends, *inputs, sums.coefficient, *parts, *aux_rows, *encoder, *decoder, *adam,
        HAS_AUX=aux is not None, PAIRS=_pairs_at_once(block), num_warps=_num_warps(block, encoder), **sizes,
    )  # fmt: skip


def row_gradients(
    sums: RowSums,
    adam: AdamStep,
    dtype: torch.dtype,
    *,
    aux: AuxGradients | None,
    prefixes: Int[Tensor, " l"] | None = None,
) -> Iterator[Float[Tensor, "m d"]]:
    """The encoder's weight gradient [m, d] in `dtype`, then the decoder's; each is added up when it is asked for."""
    pairs, decoded, centred, coefficient, ends = sums
    _, sizes, parts = _summed_parts(sums, prefixes)
    aux_rows = (aux.w_enc, aux.w_dec) if aux else parts
    weights, sources = (decoded.grad_acts, decoded.acts), (centred, decoded.error)
    levels = 1, sizes["LEVELS"]
    for i in range(2):
        width = sources[i].shape[-1]
        block = triton.next_power_of_2(width)
        out = torch.empty(pairs.n_latents, width, dtype=dtype, device=centred.device)
        programs.gradients_program[(pairs.n_latents,)](
            pairs.offsets, ends, pairs.order, pairs.tokens, weights[i], sources[i],
            ends if prefixes is None else prefixes, len(centred), coefficient, parts[i],
            aux.slots if aux else pairs.offsets, aux_rows[i], out, adam.numbers, HAS_AUX=aux is not None, SPLIT=LONG, K=pairs.k,
            PAIRS=_pairs_at_once(block), LEVELS=levels[i], SCALED=i == 1, WIDTH=width, BLOCK=block,
            num_warps=4 if block <= 4096 else 8,
        )  # fmt: skip
        yield out


def apply_rows(
    gradients: Float[Tensor, "parts m d"], table: WeightTable, *, adam: AdamStep, has_unit_norm: bool
) -> None:
    """Adam on the rows of one table, with gradients that are there in parts, and their unit norm, in place."""
    n_parts, n_latents, width = gradients.shape
    block = triton.next_power_of_2(width)
    programs.apply_program[(n_latents,)](
        gradients, *table, *adam, PARTS=n_parts, UNIT=has_unit_norm, WIDTH=width, BLOCK=block, num_warps=_num_warps(block, table)
    )  # fmt: skip


def _num_warps(block: int, table: WeightTable) -> int:
    """Warps of a program that updates one row. 8-bit codes take many registers per number, so they want more."""
    if table.first_moment.dtype == torch.int8:
        return 4 if block <= 1024 else 16
    return 4 if block <= 4096 else 8


def _pairs_at_once(block: int) -> int:
    """Pairs whose rows a program adds up together; for short rows one at a time is as fast, with fewer registers."""
    return 2 if block > 2048 else 1


class _SummedParts(NamedTuple):
    """What programs over latents read, their sizes, and sums [parts, d] of the parts of latents with many pairs."""

    inputs: tuple[Any, ...]
    sizes: dict[str, Any]
    parts: list[Tensor]


def _summed_parts(sums: RowSums, prefixes: Tensor | None) -> _SummedParts:
    """Adds up latents with many pairs in parts, so that no program over latents runs long."""
    pairs, decoded, centred, _, ends = sums
    width_in, width_out = centred.shape[1], decoded.error.shape[2]
    sizes: dict[str, Any] = dict(
        K=pairs.k, WIDTH_IN=width_in, WIDTH_OUT=width_out, BLOCK_IN=triton.next_power_of_2(width_in),
        BLOCK_OUT=triton.next_power_of_2(width_out), SPLIT=LONG, LEVELS=len(decoded.error),
    )  # fmt: skip
    parts = [torch.empty(pairs.n_parts, w, dtype=torch.float32, device=centred.device) for w in (width_in, width_out)]
    prefix_ends = ends if prefixes is None else prefixes
    inputs = (
        pairs.order, pairs.tokens, decoded.acts, decoded.grad_acts, decoded.error, centred, prefix_ends, len(centred)
    )  # fmt: skip

    if pairs.n_parts:
        owners = torch.searchsorted(ends, numbers(pairs.n_parts, centred.device).long(), right=True)
        programs.parts_program[(pairs.n_parts,)](
            owners, ends, pairs.offsets, *inputs, *parts, pairs.n_latents, PAIRS=4,
            num_warps=4 if max(sizes["BLOCK_IN"], sizes["BLOCK_OUT"]) <= 4096 else 8, **sizes,
        )  # fmt: skip
    return _SummedParts(inputs, sizes, parts)


__all__ = [
    "DTYPE", "apply_rows", "batch_pairs", "bias_gradient_and_firings", "decode", "encode", "fits_groups", "numbers", "prepare",
    "rounded", "row_gradients", "row_times", "sorted_pairs", "top_k", "update_rows", "update_vector", "values_at",
    "widest",
]  # fmt: skip
