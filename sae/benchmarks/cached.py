"""Part of `sae bench stream`: reading activations from disk against harvesting them again, and when a cache pays."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from sae.stream.activation_cache import ActivationCache
from sae.stream.activations import Activations

BYTES = 4e9  # of activations that are written and read; the rest is reckoned from these


def measure(
    activations: Callable[[], Activations], folder: Path, seconds: Callable[[Callable[[], object]], float]
) -> dict[str, float]:
    """Seconds to harvest and store all tokens, and seconds to read them from disk, in bfloat16 and in 8 bits.

    Files are synced before reading begins, and the system is asked to drop them from its memory.
    """
    timings = {}
    for kind in ("bfloat16", "int8"):
        stream = activations()
        stream.harvester.harvest(stream.contexts.ids[:1], stream.contexts.documents[:1])  # compiled by now
        stream.cache = ActivationCache(folder / kind, stream.harvester, is_int8=kind == "int8")
        timings[f"harvest and keep, {kind}"] = _whole(stream, stream.cache, seconds)
        timings[f"read from disk, {kind}"] = _whole(stream, stream.cache, seconds)
        assert stream.cache.traffic.read == stream.cache.traffic.written
        shutil.rmtree(stream.cache.folder)

    return timings


def _whole(stream: Activations, cache: ActivationCache, seconds: Callable[[Callable[[], object]], float]) -> float:
    """Seconds for all tokens, extrapolated from segments of about `BYTES`."""
    length, n_contexts = stream.contexts.ctx_len, stream.contexts.n_contexts
    per_segment = 2 * sum(map(stream.harvester.width, stream.harvester.hooks)) * stream.segment_contexts * length
    n_segments = min(stream.n_segments, max(2, int(BYTES / per_segment)))

    def go_through() -> None:
        for number in range(n_segments):
            stream.segment(number)
        for path in cache.folder.glob("*.safetensors"):
            _to_disk(path)

    n_read = min(n_segments * stream.segment_contexts, n_contexts)
    before = cache.traffic.read + cache.traffic.written
    taken = seconds(go_through)
    assert cache.traffic.read + cache.traffic.written - before == n_read * length

    return taken * n_contexts / n_read


def _to_disk(path: Path) -> None:
    """Syncs a file, and asks the system to drop it from memory."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def break_even(harvest: float, keep: float, read: float) -> int | None:
    """From how many runs on the same activations on a cache takes less time; None if it never does.

    n runs take n `harvest` without a cache, and `keep` + (n - 1) `read` with one.
    """
    if read >= harvest:
        return None
    return max(1, math.floor((keep - read) / (harvest - read)) + 1)


def sentence(seconds: dict[str, float]) -> str:
    """When a cache pays, in words."""
    sentences = []
    for kind in ("bfloat16", "int8"):
        harvest = seconds["harvest alone"]
        first = break_even(harvest, seconds[f"harvest and keep, {kind}"], seconds[f"read from disk, {kind}"])
        sentences.append(f"{kind}: {'never' if first is None else f'from run {first} on'}")
    return f"- a shared cache saves time on the same activations, {'; '.join(sentences)}"
