"""BatchTopK over a batch whose tokens are spread over processes: all keep what is among the largest of the whole batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.foundation.distributed import Processes
from sae.kernels.reference import ragged
from sae.kernels.step_types import FlatCode


class BatchPairs(NamedTuple):
    """Pairs of a token and a latent in the places of `flat`; what only fills the list up is named m and holds 0."""

    latents: Int[Tensor, " p"]
    values: Float[Tensor, " p"]
    flat: FlatCode


def kept(values: Float[Tensor, " p"], wanted: int, processes: Processes) -> Bool[Tensor, " p"]:
    """Which of this process's numbers are among the `wanted` largest of all processes'; ties go to the first process.

    Every process gives its own `wanted` largest, or all that it has, filled up with -inf. Nothing waits for a GPU.
    """
    everywhere = processes.all_gather_columns(values[None])[0]
    least = everywhere.topk(min(wanted, len(everywhere)), sorted=False).values.min()
    is_at = everywhere.view(processes.world_size, -1) == least
    n_spare = wanted - (everywhere > least).sum() - is_at[: processes.rank].sum()
    at = values == least
    return (values > least) | (at & (at.cumsum(0) <= n_spare))


def by_token(
    tokens: Int[Tensor, " p"],
    latents: Int[Tensor, " p"],
    values: Float[Tensor, " p"],
    keep: Bool[Tensor, " p"],
    *,
    shape: tuple[int, int],
) -> BatchPairs:
    """The pairs that are kept, by token and ascending latent, before those that are not; shape: (tokens, latents)."""
    n, m = shape
    order = torch.where(keep, tokens, n).sort(stable=True).indices
    keep, tokens = keep[order], tokens[order]
    flat = FlatCode.from_tokens(torch.where(keep, tokens, n), n)
    return BatchPairs(
        torch.where(keep, latents[order], m).int(),
        torch.where(keep, values[order], 0.0),
        flat._replace(tokens=flat.tokens.clamp_max(n - 1)),
    )


def largest_of_batch(
    pre_acts: Float[Tensor, "tokens latents"], wanted: int, processes: Processes
) -> Int[Tensor, "tokens width"]:
    """This process's latents among the `wanted` largest positive ones of all processes, padded with -1; for a CPU."""
    flat = pre_acts.relu().float().reshape(-1)
    top = flat.topk(min(wanted, len(flat)))
    values = torch.full((wanted,), float("-inf"))
    values[: len(top.values)] = top.values
    chosen = top.indices[kept(values, wanted, processes)[: len(top.indices)]]
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[chosen] = flat[chosen] > 0
    return ragged(mask.view_as(pre_acts))
