"""How long one call takes, and the memory that it needs on a GPU."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch

WARM_UP, REPEATS = 5, 20
T = TypeVar("T")


class Timed(NamedTuple):
    """Median seconds of a call with the fastest and the slowest, and the most bytes reserved on the GPU (0 on a CPU).

    Reserved, not allocated: torch does not count the memory of a recorded CUDA graph as allocated.
    """

    seconds: float
    peak_bytes: int
    fastest: float
    slowest: float


def of_peer(call: Callable[[], T]) -> T | str:
    """What the call returns, or one sentence if the peer is not installed or fails; the rest is still worth showing."""
    try:
        return call()
    except ImportError as error:
        return f"not installed ({error})"
    except Exception as error:  # a peer's own
        return f"failed ({type(error).__name__}: {error})"


def timed(call: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> Timed:
    """Times `repeats` calls after a few uncounted ones; on a GPU by its own clock."""
    for _ in range(WARM_UP if device.type == "cuda" else 2):
        call()

    if device.type != "cuda":
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return Timed(statistics.median(seconds), 0, min(seconds), max(seconds))

    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()

    torch.cuda.synchronize()
    each = [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(marks)]

    return Timed(statistics.median(each), torch.cuda.max_memory_reserved(), min(each), max(each))


def together(rounds: list[Timed]) -> Timed:
    """Several timings of one call as one: the median of their medians, the whole range, the most memory."""
    return Timed(
        statistics.median(timing.seconds for timing in rounds),
        max(timing.peak_bytes for timing in rounds),
        min(timing.fastest for timing in rounds),
        max(timing.slowest for timing in rounds),
    )
