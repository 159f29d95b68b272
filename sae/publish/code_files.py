"""Sparse codes of a stream on disk, written token by token in the order of the text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer

from feature_store.atomic import naming
from feature_store.indexing.codes import starts_from
from sae.foundation.distributed import Processes
from sae.foundation.files import reserve


class Latents(NamedTuple):
    """The latents of all tokens, one after another; those of a token start at its number of `starts`."""

    starts: Int[np.ndarray, " tokens_and_one"]
    indices: Integer[np.ndarray, " firings"]
    acts: Float[np.ndarray, " firings"]


class CodeFiles:
    """Two files, of latents and of their activations, as long as tokens fire: a code with few latents on most tokens
    and thousands on one takes what it has. Tokens that are never written have no latents.
    """

    def __init__(self, folder: Path, n_tokens: int, d_sae: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._counts = folder, np.zeros(n_tokens, np.int64)
        self._index_type = np.uint16 if d_sae <= 1 << 16 else np.uint32
        self._paths = folder / "indices.bin", folder / "acts.bin"
        for path in self._paths:
            path.write_bytes(b"")

    def write(
        self,
        tokens: Int[np.ndarray, " tokens"],
        indices: Integer[np.ndarray, "tokens width"],
        acts: Float[np.ndarray, "tokens width"],
    ) -> None:
        """Appends the latents of some tokens that activate above 0; tokens come in rising order over all calls."""
        fired = acts > 0
        self._counts[tokens] = fired.sum(1)
        columns = indices[fired].astype(self._index_type), acts[fired].astype(np.float32)
        for path, values in zip(self._paths, columns, strict=True):
            with naming(path), path.open("ab") as file:
                file.write(values.data)

    def latents(self) -> Latents:
        """What was written, mapped from the disk."""
        starts = starts_from(self._counts)
        return Latents(starts, *_mapped(self._paths, self._index_type, int(starts[-1]), "r"))

    def joined(self, folder: Path, processes: Processes, parts: Iterable[slice]) -> Latents:
        """The latents of all processes in shared files; every process copies those of its own tokens, in `parts`."""
        written = self.latents()
        starts = starts_from(np.sum(processes.all_gather_objects(self._counts), axis=0))
        paths = folder / "indices.bin", folder / "acts.bin"

        def make_room() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            for path, itemsize in zip(paths, (np.dtype(self._index_type).itemsize, 4), strict=True):
                reserve(path, int(starts[-1]) * itemsize)

        processes.on_first(make_room)
        shared = _mapped(paths, self._index_type, int(starts[-1]), "r+")
        for part in parts:
            here, there = (slice(s[part.start], s[part.stop]) for s in (written.starts, starts))
            for target, source in zip(shared, (written.indices, written.acts), strict=True):
                target[there] = source[here]
        processes.barrier()

        return Latents(starts, *shared)


def _mapped(
    paths: tuple[Path, Path], index_type: type[np.uint16 | np.uint32], size: int, mode: Literal["r", "r+"]
) -> tuple[np.ndarray, np.ndarray]:
    if size == 0:  # nothing can be mapped
        return np.empty(0, index_type), np.empty(0, np.float32)
    indices, acts = (
        np.memmap(path, dtype, mode, shape=(size,)) for path, dtype in zip(paths, (index_type, np.float32), strict=True)
    )
    return np.asarray(indices), np.asarray(acts)
