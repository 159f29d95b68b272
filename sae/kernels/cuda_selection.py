"""Chooses latents on a GPU, in Triton: top-k, batch top-k, thresholds. `reference` defines what it computes."""

# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor

from sae.kernels import reference
from sae.kernels.programs import selection as programs
from sae.kernels.reference import ragged

# Latents whose largest pre-activation stands for them while the k largest are looked for. The encoder's program writes
# these maxima on the way (about 20 us on an H100); read again from its output they cost as much as the product itself.
GROUP = 64
FEW_LATENTS = 32_768  # up to which half as many are faster: 1,024 maxima of a token are looked at as quickly as 512


def group_of(n_latents: int) -> int:
    """How many latents a maximum stands for where their k largest are looked for."""
    return GROUP // 2 if n_latents <= FEW_LATENTS else GROUP


def fits_groups(n_latents: int, k: int) -> bool:
    """Whether the k largest can be loaded by the maxima of groups."""
    group = group_of(n_latents)
    n_groups = n_latents // group
    return n_latents % group == 0 and k <= n_groups <= 32_768 and k * group <= 16_384


def _maxima(pre_acts: Tensor) -> Tensor:
    span = group_of(pre_acts.shape[1])
    n, n_groups = len(pre_acts), pre_acts.shape[1] // span
    maxima = torch.empty(n, n_groups, dtype=pre_acts.dtype, device=pre_acts.device)
    if n:
        programs.maxima_program[(n, triton.cdiv(n_groups, 32))](
            pre_acts, maxima, n_groups, GROUPS=32, SPAN=span, num_warps=2
        )
    return maxima


def top_k(
    pre_acts: Float[Tensor, "tokens latents"], k: int, maxima: Float[Tensor, "tokens groups"] | None = None
) -> tuple[Int[Tensor, "tokens k"], Float[Tensor, "tokens k"]]:
    """(indices in int32, values in float32), [tokens, k] each, of the k largest of every row, indices ascending.

    Exact: every one of the k largest lies in one of the k groups with the largest maxima. Ties go to the smaller index.
    """
    (n, m), span = pre_acts.shape, group_of(pre_acts.shape[1])
    pre_acts = pre_acts.contiguous()
    if maxima is None:
        maxima = _maxima(pre_acts)

    bits = 16 if pre_acts.dtype == torch.bfloat16 else 32
    groups, indices = (torch.empty(n, k, dtype=torch.int32, device=pre_acts.device) for _ in range(2))
    values = torch.empty(n, k, dtype=torch.float32, device=pre_acts.device)
    if n:
        bounds = torch.empty(n, dtype=torch.int32, device=pre_acts.device)
        size = triton.next_power_of_2(maxima.shape[1])
        programs.groups_program[(n,)](
            maxima, groups, bounds, maxima.shape[1], K=k, SIZE=size, BITS=bits, num_warps=max(1, size // 2048)
        )
        size = triton.next_power_of_2(k) * span
        programs.pick_program[(n,)](
            pre_acts, groups, bounds, indices, values, m, K=k, SIZE=size, SPAN=span, BITS=bits,
            num_warps=min(16, max(1, size // 1024)),
        )  # fmt: skip

    return indices, values


def top_k_indices(pre_acts: Float[Tensor, "tokens latents"], k: int) -> Int[Tensor, "tokens k"]:
    """See `reference.top_k_indices`; plain torch if the row is too short for groups."""
    if fits_groups(pre_acts.shape[1], k) and pre_acts.dtype in (torch.bfloat16, torch.float32):
        return top_k(pre_acts, k)[0].long()
    return pre_acts.topk(k, dim=1, sorted=False).indices.sort(dim=1).values


def batch_top_k(pre_acts: Float[Tensor, "tokens latents"], k: int) -> Int[Tensor, "tokens width"]:
    """See `reference.batch_top_k`. Looks only into the groups with the largest maxima, as `top_k` does.

    Ties go to the smaller (token, latent).
    """
    n, m = pre_acts.shape
    wanted, span = n * k, group_of(m)
    if m % span or wanted >= n * m // span or pre_acts.dtype not in (torch.bfloat16, torch.float32):
        return reference.batch_top_k(pre_acts, k)

    pre_acts = pre_acts.contiguous()
    maxima = _maxima(pre_acts).flatten()
    groups = (maxima >= maxima.topk(wanted, sorted=False).values.min()).nonzero()[:, 0]
    loaded = pre_acts.view(-1, span)[groups]
    least = loaded.flatten().topk(wanted, sorted=False).values.min()
    keep, at = loaded > least.clamp_min(0), (loaded == least) & (least > 0)
    keep |= at & (at.flatten().cumsum(0).view_as(at) <= wanted - keep.sum())
    row, column = keep.nonzero(as_tuple=True)
    places = groups[row] * span + column

    return reference.by_token(torch.div(places, m, rounding_mode="floor"), places % m, n)


def batch_pairs(
    pre_acts: Float[Tensor, "tokens latents"], wanted: int, maxima: Float[Tensor, "tokens groups"] | None = None
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """(tokens, latents) [wanted] of the largest pre-activations of the whole batch, sorted by token; Python waits for
    nothing.

    Pre-activations below 0 are taken if fewer are above. Among equal numbers the choice is arbitrary but repeatable.
    """
    n, m = pre_acts.shape
    wanted, flat = min(wanted, n * m), pre_acts.contiguous().view(-1)
    if maxima is not None and wanted < maxima.numel():
        span = m // maxima.shape[1]
        groups = maxima.flatten().topk(wanted, sorted=False).indices.sort().values
        loaded = flat.view(-1, span)[groups].flatten().topk(wanted, sorted=False).indices.sort().values
        places = groups[loaded // span] * span + loaded % span
    else:
        places = flat.topk(wanted, sorted=False).indices.sort().values

    tokens = places // m
    return tokens, places - tokens * m


def _filled(pre_acts: Tensor, bounds: Tensor, spares: Tensor | None, counts: Tensor) -> Tensor:
    n, m = pre_acts.shape
    out = torch.full((n, max(1, int(counts.max()) if n else 0)), -1, dtype=torch.int64, device=pre_acts.device)
    if n:
        by_row = spares is not None
        programs.above_program[(n,)](
            pre_acts, bounds, spares if by_row else counts, counts, out, m, out.shape[1], BLOCK=1024, BY_ROW=by_row,
            FILL=True, num_warps=4,
        )  # fmt: skip
    return out


def above(
    pre_acts: Float[Tensor, "tokens latents"], threshold: Float[Tensor, ""] | Float[Tensor, " latents"] | float
) -> Int[Tensor, "tokens width"]:
    """See `reference.above`."""
    pre_acts, (n, m) = pre_acts.contiguous(), pre_acts.shape
    bounds = torch.as_tensor(threshold, dtype=torch.float32, device=pre_acts.device).expand(m).contiguous()
    counts = torch.zeros(n, dtype=torch.int32, device=pre_acts.device)
    if n:
        programs.above_program[(n,)](
            pre_acts, bounds, counts, counts, counts, m, 1, BLOCK=1024, BY_ROW=False, FILL=False, num_warps=4
        )
    return _filled(pre_acts, bounds, None, counts)


def norm_crossing(
    pre_acts: Float[Tensor, "tokens latents"], norm: Float[Tensor, " tokens"]
) -> Int[Tensor, "tokens width"]:
    """See `reference.norm_crossing`. Finds the crossing by bisection, with sums in float32."""
    pre_acts, (n, m) = pre_acts.contiguous(), pre_acts.shape
    if m > 1 << 17 or pre_acts.dtype not in (torch.bfloat16, torch.float32):
        return reference.norm_crossing(pre_acts, norm)

    bounds = torch.empty(n, dtype=torch.float32, device=pre_acts.device)
    spares, counts = torch.empty(2, n, dtype=torch.int32, device=pre_acts.device)
    size = triton.next_power_of_2(m)
    if n:
        programs.crossing_program[(n,)](
            pre_acts, norm.float().contiguous(), bounds, spares, counts, m, SIZE=size,
            BITS=16 if pre_acts.dtype == torch.bfloat16 else 32, num_warps=min(16, max(1, size // 2048)),
        )  # fmt: skip

    return _filled(pre_acts, bounds, spares, counts)


__all__ = [
    "GROUP",
    "above",
    "batch_pairs",
    "batch_top_k",
    "fits_groups",
    "norm_crossing",
    "ragged",
    "top_k",
    "top_k_indices",
]
