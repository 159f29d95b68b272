"""Mixes activations across contexts: a ring of segments with a stated byte budget and a plan that is pure arithmetic.

The contexts are cut into segments. The ring holds `reuse * SPREAD` segments; in every cycle one new segment
enters, the oldest leaves, and a part of each segment in the ring is emitted in a random order. Every row is
emitted exactly `reuse` times, once in each group of SPREAD cycles of its stay, so nothing is dropped or doubled
and every batch mixes the whole ring. What a cycle emits depends on (seed, cycle) alone, so a position is two
numbers and a resumed run draws the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from sae.hookpoints import Channel
from sae.section import Count, Section

SPREAD = 2


class ShuffleConfig(Section):
    """How much memory the mixing may take and how often an activation is used."""

    buffer_bytes: Count = Field(
        default=1_000_000_000, ge=1_000, description="Memory of the ring, all channels together."
    )
    reuse: Count = Field(default=1, ge=1, le=64, description="Times that every harvested activation is trained on.")


def segment_contexts(config: ShuffleConfig, bytes_per_context: int, n_contexts: int, per_pass: int = 1) -> int:
    """Contexts per segment such that the whole ring fits the budget: whole forward passes where it holds one; at least 1."""
    slots = config.reuse * SPREAD
    fitting = max(1, config.buffer_bytes // (slots * bytes_per_context))
    return min(fitting // per_pass * per_pass or fitting, max(1, -(-n_contexts // slots)))


def _generator(seed: int, device: torch.device, *stream: int) -> torch.Generator:
    """A generator that depends on the run's seed, a place in it, and the kind of device only."""
    mixed = seed
    for number in stream:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % (1 << 63)
    return torch.Generator(device).manual_seed(mixed)


class ShufflePlan:
    """Which rows of which segments each cycle emits, drawn on a device, whose kind decides the numbers."""

    def __init__(self, n_segments: int, reuse: int, seed: int, device: torch.device | str = "cpu"):
        self.n_segments, self.reuse, self.seed, self.device = n_segments, reuse, seed, torch.device(device)
        self.slots = reuse * SPREAD
        self.n_cycles = n_segments + self.slots - 1

    def segments_in(self, cycle: int) -> range:
        """Segments that are in the ring during a cycle."""
        return range(max(0, cycle - self.slots + 1), min(cycle + 1, self.n_segments))

    def emitted(self, segment: int, cycle: int, n_rows: int) -> Tensor:
        """Rows of one segment that a cycle emits: part `age % SPREAD` of the permutation of this use."""
        use, part = divmod(cycle - segment, SPREAD)
        return self.permutation(n_rows, 1, segment, use)[part::SPREAD]

    def permutation(self, n: int, *stream: int) -> Tensor:
        """A random order of n things that depends on the seed and the place `stream` alone."""
        return torch.randperm(n, generator=_generator(self.seed, self.device, *stream), device=self.device)


class RingBuffer:
    """The activations of the segments in the ring, in one preallocated tensor per channel."""

    def __init__(
        self,
        widths: dict[Channel, int],
        slots: int,
        max_rows: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.slots, self.max_rows = slots, max_rows
        self.data = {
            channel: torch.empty(slots * max_rows, width, dtype=dtype, device=device)
            for channel, width in widths.items()
        }
        self.held: list[int | None] = [None] * slots
        self.n_rows: dict[int, int] = {}

    def put(self, segment: int, x: dict[Channel, Tensor]) -> None:
        """Writes a segment into its slot, over the one that left the ring."""
        slot = segment % self.slots
        evicted = self.held[slot]
        if evicted is not None:
            self.n_rows.pop(evicted, None)
        for channel, rows in x.items():
            self.data[channel][slot * self.max_rows : slot * self.max_rows + len(rows)].copy_(rows)
            self.n_rows[segment] = len(rows)
        self.held[slot] = segment

    def cycle_order(self, plan: ShufflePlan, cycle: int) -> Tensor:
        """Places in the ring of everything that a cycle emits, in the order of emission."""
        places = [
            plan.emitted(g, cycle, self.n_rows[g]) + (g % self.slots) * self.max_rows for g in plan.segments_in(cycle)
        ]
        joined = torch.cat(places)
        return joined[plan.permutation(len(joined), 2, cycle)]

    def batches(self, order: Tensor, batch_tokens: int, skip: int) -> Iterator[dict[Channel, Tensor]]:
        """The cycle's rows in nearly equal batches of at most `batch_tokens`, without the first `skip` batches."""
        n_batches = -(-len(order) // batch_tokens)
        for places in torch.tensor_split(order, n_batches)[skip:] if n_batches else ():
            yield {c: data.index_select(0, places) for c, data in self.data.items()}
