"""Codes that keep a different number of latents per token, on a GPU, in two parts: count the pairs, then write them.

Between the parts Python reads one number, how many pairs there are. Each part has shapes that are known beforehand, so
that both can be recorded as CUDA graphs. `reference.above` and `reference.norm_crossing` define what is kept.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.kernels.cuda_pairs import LONG, SortedPairs, sorting_keys
from sae.kernels.cuda_selection import GROUP
from sae.kernels.cuda_step import encode_with_hits, encode_with_maxima
from sae.kernels.programs import ragged as programs
from sae.kernels.step_types import FlatCode

# Groups that are listed per token. For the crossing a power of two: its program holds the latents of all of them at once.
LISTED_ABOVE, LISTED_TO_NORM = 256, 128
FEWEST_PAIRS = 1 << 14


class CountedLatents(NamedTuple):
    """What a batch keeps, counted but not yet written.

    Token t has starts[t + 1] - starts[t] pairs. Kept is what is above `bounds`, [m] or, with `spares` [n], [n]; of the
    latents at its bound a token keeps the first `spares`. groups [n, listed] are those of its groups of latents that may
    hold a kept one, if their number n_listed [n] is no more than that. n_most: the most pairs of any process, if several
    share the batch.
    """

    pre_acts: Float[Tensor, "n m"]
    bounds: Float[Tensor, " ..."]
    spares: Int[Tensor, " n"] | None
    groups: Int[Tensor, "n listed"]
    n_listed: Int[Tensor, " n"]
    starts: Int[Tensor, " starts"]
    n_most: Int[Tensor, " 1"] | None = None

    def n_pairs(self) -> int:
        """How many pairs there are, in the process with most; waits for the GPU."""
        return int(self.starts[-1] if self.n_most is None else self.n_most)


def room_for(n_pairs: int) -> int:
    """`n_pairs` rounded up to an eighth of a power of two, so that nearly equal batches share a recording."""
    step = max(FEWEST_PAIRS, (1 << max(n_pairs - 1, 1).bit_length()) // 16)
    return -(-max(n_pairs, 1) // step) * step


def count_above(
    centred: Float[Tensor, "n d"],
    table: Float[Tensor, "m d"],
    bias: Float[Tensor, " m"],
    *,
    bounds: Float[Tensor, " m"],
    is_counted: Float[Tensor, " n"],
) -> CountedLatents:
    """The latents above their own bounds; see `reference.above`."""
    pre_acts, hits = encode_with_hits(centred, table, bias, bounds)
    n, n_groups = hits.shape
    groups, n_listed, counts = _lists(n, LISTED_ABOVE, centred.device)
    programs.hit_groups_program[(n,)](
        hits, groups, n_listed, counts, n_groups, ROOM=LISTED_ABOVE, SIZE=triton.next_power_of_2(n_groups), num_warps=1
    )
    return CountedLatents(pre_acts, bounds, None, groups, n_listed=n_listed, starts=_starts(counts, is_counted))


def count_to_norm(
    centred: Float[Tensor, "n d"], table: Float[Tensor, "m d"], bias: Float[Tensor, " m"], *, is_counted: Float[Tensor, " n"]
) -> CountedLatents:  # fmt: skip
    """The largest latents of every token whose norm is nearest to that of its row; see `reference.norm_crossing`."""
    pre_acts, maxima = encode_with_maxima(centred, table, bias, GROUP)
    (n, n_groups), n_latents = maxima.shape, pre_acts.shape[1]
    groups, n_listed, counts = _lists(n, LISTED_TO_NORM, centred.device)
    lows, spares = torch.empty(2, n, dtype=torch.int32, device=centred.device)
    bounds = torch.empty(n, dtype=torch.float32, device=centred.device)
    norms = torch.linalg.vector_norm(centred, dim=1, dtype=torch.float32)
    size = triton.next_power_of_2(n_groups)

    programs.crossing_groups_program[(n,)](
        maxima, norms, groups, lows, n_listed, n_groups, ROOM=LISTED_TO_NORM, SIZE=size, num_warps=max(1, size // 2048)
    )
    programs.listed_crossing_program[(n,)](
        pre_acts,
        norms,
        groups,
        lows,
        n_listed,
        bounds,
        spares,
        counts,
        n_latents,
        ROOM=LISTED_TO_NORM,
        SPAN=GROUP,
        num_warps=8,
    )
    programs.whole_crossing_program[(n,)](
        pre_acts, norms, lows, n_listed, bounds, spares, counts, n_latents, ROOM=LISTED_TO_NORM, BLOCK=4096, num_warps=8
    )

    return CountedLatents(pre_acts, bounds, spares, groups, n_listed=n_listed, starts=_starts(counts, is_counted))


class FilledLatents(NamedTuple):
    """The pairs of a batch: latents (int32) and pre-activations (float32) in the places of `flat`; see `fill`."""

    latents: Int[Tensor, " p"]
    values: Float[Tensor, " p"]
    flat: FlatCode


def fill(counted: CountedLatents, room: int) -> FilledLatents:
    """Writes the pairs by token and ascending latent. The places after the last of `room` are named m and hold 0."""
    n, m = counted.pre_acts.shape
    device = counted.pre_acts.device
    latents = torch.full((room,), m, dtype=torch.int32, device=device)
    tokens = torch.zeros(room, dtype=torch.int32, device=device)
    values = torch.zeros(room, dtype=torch.float32, device=device)
    by_row = counted.spares is not None
    programs.fill_program[(n,)](
        counted.pre_acts, counted.bounds, counted.spares if by_row else counted.n_listed, counted.groups,
        counted.n_listed, counted.starts, tokens, latents, values, m, BY_ROW=by_row, ROOM=counted.groups.shape[1], PART=32,
        SPAN=GROUP, num_warps=4,
    )  # fmt: skip
    return FilledLatents(latents, values, FlatCode(tokens, counted.starts))


class ActivePairs(SortedPairs):
    """The pairs of a batch sorted by latent, those that give weights no gradient behind all others.

    What is summed for weights then reads the first alone (`has_gradient`). Latent i also owns order[rest[i] .. rest[i + 1]].
    """

    def __init__(
        self, latents: Int[Tensor, " p"], has_gradient: Bool[Tensor, " p"], tokens: Int[Tensor, " p"], n_latents: int
    ):
        # Places that only fill the list up are named n_latents; they end the first half.
        keys = torch.where(has_gradient | (latents == n_latents), latents, latents + (n_latents + 1))
        keys, numbered = sorting_keys(keys, 2 * n_latents + 1)
        ordered, self.order = keys.sort(stable=True)
        ends = torch.searchsorted(ordered, numbered, out_int32=True)
        self.offsets, self.rest = ends[: n_latents + 1], ends[n_latents + 1 :]
        self.tokens, self.k = tokens, 0
        self.n_latents, self.n_parts = n_latents, 2 * len(ordered) // LONG

    def sum_by_latent(self, values: Float[Tensor, " p"]) -> Float[Tensor, " latents"]:
        """Sums over all pairs of every latent."""
        return segment_sums(values, self.offsets, self.order) + segment_sums(values, self.rest, self.order)


def segment_sums(
    values: Float[Tensor, " p"], offsets: Int[Tensor, " ends"], order: Int[Tensor, " p"] | None = None
) -> Float[Tensor, " segments"]:
    """Sums of values[offsets[i] : offsets[i + 1]], or of values[order[...]], in a fixed order."""
    n_segments = len(offsets) - 1
    out = torch.empty(n_segments, dtype=torch.float32, device=values.device)
    programs.segment_sums_program[(n_segments,)](
        values, offsets, offsets if order is None else order, out, ORDERED=order is not None, SIZE=128, num_warps=1
    )
    return out


class _GroupLists(NamedTuple):
    """Room for the listed groups of every token [n, listed], their numbers [n], and those of kept latents [n]."""

    groups: Tensor
    n_listed: Tensor
    counts: Tensor


def _lists(n: int, room: int, device: torch.device) -> _GroupLists:
    n_listed, counts = torch.empty(2, n, dtype=torch.int32, device=device)
    return _GroupLists(torch.empty(n, room, dtype=torch.int32, device=device), n_listed, counts)


def _starts(counts: Tensor, is_counted: Tensor) -> Tensor:
    starts = torch.zeros(len(counts) + 1, dtype=torch.int32, device=counts.device)
    starts[1:] = (counts * is_counted.to(counts.dtype)).cumsum(0)
    return starts
