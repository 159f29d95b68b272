"""Tensors in safetensors files, whole or in the pieces of several processes; written together, read in part."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae.foundation.distributed import Processes
from sae.foundation.downloads import sha256_of
from sae.foundation.files import temporary_of, write_folder


class Piece(NamedTuple):
    """One process's part of a tensor: its values, the axis that is cut, and where the part begins on that axis."""

    tensor: Shaped[Tensor, " ..."]
    axis: int
    start: int


def tensors_to_write(
    tensors: dict[str, Shaped[Tensor, " ..."] | Piece], processes: Processes
) -> dict[str, Shaped[Tensor, " ..."] | Piece]:
    """The tensors that this process writes: its own pieces; the first process also writes everything replicated."""
    return tensors if processes.is_first else {name: t for name, t in tensors.items() if isinstance(t, Piece)}


def save_tensors(path: Path, tensors: dict[str, Shaped[Tensor, " ..."] | Piece]) -> str:
    """Writes tensors and pieces to one file; returns its SHA-256."""
    pieces = {name: [t.axis, t.start] for name, t in tensors.items() if isinstance(t, Piece)}
    values = {name: t.tensor if isinstance(t, Piece) else t for name, t in tensors.items()}
    on_cpu = {name: t.detach().contiguous().cpu() for name, t in values.items()}
    save_file(on_cpu, path, metadata={"format": "saedex", "pieces": json.dumps(pieces)})
    return sha256_of(path)


class _Location(NamedTuple):
    """Where a piece of a tensor is stored: its start on the axis that is cut, that axis, and the file."""

    start: int
    axis: int
    path: Path


class TensorFiles:
    """Tensors by name in several files, of which some are cut into pieces; reads only what it is asked for."""

    def __init__(self, paths: list[Path]):
        self._locations: dict[str, list[_Location]] = {}
        for path in paths:
            with safe_open(path, "pt") as file:
                pieces = json.loads((file.metadata() or {}).get("pieces", "{}"))
                for name in file.keys():  # noqa: SIM118 (not a dictionary)
                    axis, start = pieces.get(name, (0, 0))
                    self._locations.setdefault(name, []).append(_Location(start, axis, path))
        for locations in self._locations.values():
            locations.sort()

    def __contains__(self, name: str) -> bool:
        return name in self._locations

    def names(self) -> list[str]:
        """Names of all tensors."""
        return sorted(self._locations)

    def read(self, name: str, part: slice | None = None) -> Shaped[Tensor, " ..."]:
        """The tensor, or a part of it along the axis that it was cut on."""
        pieces = []
        for start, axis, path in self._locations[name]:
            with safe_open(path, "pt") as file:
                if part is None:
                    pieces.append(file.get_tensor(name))
                    continue
                stored = file.get_slice(name)
                first, last = max(part.start - start, 0), min(part.stop - start, stored.get_shape()[axis])
                if first < last:
                    pieces.append(stored[:, first:last] if axis else stored[first:last])

        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=self._locations[name][0].axis)


def write_folder_together(folder: Path, fill: Callable[[Path], None], processes: Processes) -> None:
    """As `write_folder`, but every process fills the same folder; returns when the folder has its name."""

    def fill_when_created(temporary: Path) -> None:
        processes.barrier()
        fill(temporary)

    if processes.is_first:
        write_folder(folder, fill_when_created)
    else:
        fill_when_created(temporary_of(folder))

    processes.barrier()
