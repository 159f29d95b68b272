"""Mixes activations across contexts: a ring of segments with a byte budget, and a plan that is pure arithmetic.

The contexts are cut into segments. The ring holds `reuse * SPREAD` segments; in every cycle one new segment enters, the
oldest leaves, and a part of each segment in the ring is emitted in a random order. Every row is emitted exactly `reuse`
times, once in every SPREAD cycles of its stay, so nothing is dropped or doubled and every batch mixes the whole ring.
What a cycle emits depends on (seed, cycle) alone, so a position is (cycle, batch) and a resumed run draws the same
batches.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from sae.foundation.distributed import ALONE, Processes
from sae.foundation.section import Count, Section
from sae.model.hookpoints import Channel

SPREAD = 2  # cycles that one use of a segment is spread over: each batch mixes twice as many segments


class ShuffleConfig(Section):
    """How much memory the mixing may take and how often an activation is used."""

    buffer_bytes: Count = Field(
        default=1_000_000_000, ge=1_000, description="Memory of the ring, all channels together."
    )
    reuse: Count = Field(default=1, ge=1, le=64, description="Times that every harvested activation is trained on.")


def segment_contexts(config: ShuffleConfig, bytes_per_context: int, n_contexts: int, per_pass: int = 1) -> int:
    """Contexts per segment such that the whole ring fits the budget; at least 1.

    If a segment holds whole forward passes, their number is rounded down to a multiple that a power of two of
    processes can split evenly: the size, and so the order of activations, must not depend on how many processes there are.
    """
    slots = config.reuse * SPREAD
    fitting = max(1, config.buffer_bytes // (slots * bytes_per_context))
    passes = fitting // per_pass
    # Two processes with 6.5 passes each pay for 7: 1.79 instead of 1.90 times one GPU (LOG.md).
    multiple = 1 << max(0, (passes // 2).bit_length() - 1) if per_pass > 1 else 1
    return min(passes // multiple * multiple * per_pass or fitting, max(1, -(-n_contexts // slots)))


def _generator(seed: int, device: torch.device, *stream: int) -> torch.Generator:
    """A generator that depends on the run's seed, a place in it, and the kind of device only."""
    mixed = seed
    for number in stream:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % (1 << 63)
    return torch.Generator(device).manual_seed(mixed)


class ShufflePlan:
    """Which rows of which segments each cycle emits. Drawn on a device, and the kind of device decides the numbers."""

    def __init__(self, n_segments: int, reuse: int, seed: int, device: torch.device | str = "cpu"):
        self.n_segments, self.reuse, self.seed, self.device = n_segments, reuse, seed, torch.device(device)
        self.slots = reuse * SPREAD
        self.n_cycles = n_segments + self.slots - 1

    def segments_in(self, cycle: int) -> range:
        """Segments that are in the ring during a cycle."""
        return range(max(0, cycle - self.slots + 1), min(cycle + 1, self.n_segments))

    def emitted(self, segment: int, cycle: int, n_rows: int) -> Int[Tensor, " emitted"]:
        """Rows of one segment that a cycle emits: part `age % SPREAD` of the permutation of this use."""
        use, part = divmod(cycle - segment, SPREAD)
        return self.permutation(n_rows, 1, segment, use)[part::SPREAD]

    def permutation(self, n: int, *stream: int) -> Int[Tensor, " n"]:
        """A random order of n things that depends on the seed and the place `stream` alone."""
        # Drawn on the ring's device: drawn on the CPU, it left a GPU idle for 20 to 30 ms per segment.
        return torch.randperm(n, generator=_generator(self.seed, self.device, *stream), device=self.device)


class RingBuffer:
    """The activations of the segments in the ring, in one preallocated tensor per channel."""

    def __init__(
        self,
        widths: dict[Channel, int],
        slots: int,
        max_rows: int,
        dtype: torch.dtype,
        *,
        device: torch.device,
    ):
        self.slots, self.max_rows = slots, max_rows
        self.data = {
            channel: torch.empty(slots * max_rows, width, dtype=dtype, device=device)
            for channel, width in widths.items()
        }
        self.held: list[int | None] = [None] * slots
        self.counts: dict[int, list[int]] = {}  # rows of every segment that is here, by process

    def put(self, segment: int, x: dict[Channel, Float[Tensor, "rows _width"]], counts: list[int]) -> None:
        """Writes this process's rows of a segment into their slot, over the oldest segment; `counts` are those of all
        processes.
        """
        slot = segment % self.slots
        evicted = self.held[slot]
        if evicted is not None:
            self.counts.pop(evicted, None)

        for channel, rows in x.items():
            self.data[channel][slot * self.max_rows : slot * self.max_rows + len(rows)].copy_(rows)

        self.counts[segment] = counts
        self.held[slot] = segment

    def cycle_order(self, plan: ShufflePlan, cycle: int) -> tuple[Int[Tensor, " emitted"], Int[Tensor, " emitted"]]:
        """(place in its process's ring, process) of every row that a cycle emits, in the order of emission.

        Depends on the segments' rows alone, and not on how many processes share them.
        """
        by_segment = []
        for g in plan.segments_in(cycle):
            rows = plan.emitted(g, cycle, sum(self.counts[g]))
            ends = torch.tensor(self.counts[g], device=rows.device).cumsum(0)
            owners = torch.bucketize(rows.contiguous(), ends, right=True)
            starts = torch.nn.functional.pad(ends[:-1], (1, 0))
            by_segment.append(torch.stack([rows - starts[owners] + (g % self.slots) * self.max_rows, owners]))

        joined = torch.cat(by_segment, dim=1)
        places, owners = joined[:, plan.permutation(joined.shape[1], 2, cycle)]
        return places, owners

    def batches(
        self,
        order: tuple[Int[Tensor, " emitted"], Int[Tensor, " emitted"]],
        batch_tokens: int,
        skip: int,
        processes: Processes = ALONE,
    ) -> Iterator[tuple[dict[Channel, Float[Tensor, "_rows _width"]], list[int]]]:
        """The cycle's rows in nearly equal batches of at most `batch_tokens`, without the first `skip` batches.

        Yields this process's rows of every batch, and the number of rows of every process.
        """
        places, owners = order
        n_batches = -(-len(places) // batch_tokens)
        if n_batches == 0:
            return

        sizes = [len(part) for part in torch.tensor_split(places, n_batches)]
        counts = [[size] for size in sizes]
        if processes.world_size > 1:
            batch = torch.repeat_interleave(torch.tensor(sizes, device=places.device))
            flat = torch.bincount(batch * processes.world_size + owners, minlength=n_batches * processes.world_size)
            counts = flat.view(n_batches, processes.world_size).tolist()
            n_own = sum(count[processes.rank] for count in counts)
            places = places[torch.argsort(owners != processes.rank, stable=True)[:n_own]]  # a mask would sync the GPU

        parts = places.split([count[processes.rank] for count in counts])
        for part, count in list(zip(parts, counts, strict=True))[skip:]:
            yield {c: data.index_select(0, part) for c, data in self.data.items()}, count
