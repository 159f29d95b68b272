"""Resumable state of a training run: one folder per checkpoint, whole or absent, checked by hash on the way back.

Every process of a run writes a file of its own; what is spread over processes is kept in pieces, so that any number of
processes can go on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae.errors import ArtefactError
from sae.foundation.distributed import ALONE, Group
from sae.foundation.downloads import sha256_of
from sae.foundation.files import temporary_of, write_folder

KEEP = 2


class Piece(NamedTuple):
    """A process's part of a tensor: what it holds, the axis that is cut, and where the part begins on it."""

    tensor: Tensor
    axis: int
    start: int


def once(tensors: dict[str, Tensor | Piece], group: Group) -> dict[str, Tensor | Piece]:
    """Of tensors that all processes have alike, or in pieces, what this process writes: its pieces; the first, all."""
    return tensors if group.first else {name: t for name, t in tensors.items() if isinstance(t, Piece)}


def save_pieces(path: Path, tensors: dict[str, Tensor | Piece]) -> str:
    """Writes whole tensors and pieces to one file; returns its SHA-256."""
    pieces = {name: [t.axis, t.start] for name, t in tensors.items() if isinstance(t, Piece)}
    held = {name: t.tensor if isinstance(t, Piece) else t for name, t in tensors.items()}
    ready = {name: t.detach().contiguous().cpu() for name, t in held.items()}
    save_file(ready, path, metadata={"format": "saedex", "pieces": json.dumps(pieces)})
    return sha256_of(path)


class Saved:
    """Tensors by name, in files of whole tensors and of pieces; only what is asked for is read."""

    def __init__(self, paths: list[Path], facts: dict[str, Any]):
        self.facts = facts
        self._found: dict[str, list[tuple[int, int, Path]]] = {}  # where a piece begins, its axis, its file
        for path in paths:
            with safe_open(path, "pt") as file:
                pieces = json.loads((file.metadata() or {}).get("pieces", "{}"))
                for name in file.keys():  # noqa: SIM118 (not a dictionary)
                    axis, start = pieces.get(name, (0, 0))
                    self._found.setdefault(name, []).append((start, axis, path))
        for parts in self._found.values():
            parts.sort()

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def names(self) -> list[str]:
        """Names of all tensors."""
        return sorted(self._found)

    def read(self, name: str, part: slice | None = None) -> Tensor:
        """The tensor, or a part of it along the axis that it was cut on."""
        read = []
        for start, axis, path in self._found[name]:
            with safe_open(path, "pt") as file:
                view = file.get_slice(name)
                shape = view.get_shape()
                if part is None:
                    read.append(file.get_tensor(name))
                    continue
                first, last = max(part.start - start, 0), min(part.stop - start, shape[axis])
                if first < last:
                    read.append(view[:, first:last] if axis else view[first:last])
        return read[0] if len(read) == 1 else torch.cat(read, dim=self._found[name][0][1])


def write_together(folder: Path, fill: Callable[[Path], None], group: Group) -> None:
    """As `write_folder`, with every process filling the same folder; returns when the folder has its name."""

    def when_there(temporary: Path) -> None:
        group.wait()
        fill(temporary)

    if group.first:
        write_folder(folder, when_there)
    else:
        when_there(temporary_of(folder))
    group.wait()


def save(
    folder: Path, number: int, tensors: dict[str, Tensor | Piece], facts: dict[str, Any], group: Group = ALONE
) -> None:
    """Writes checkpoint `number`, every process its own tensors, and removes all but the newest `KEEP`."""
    target = folder / f"checkpoint-{number:012d}"
    name = f"state-{group.rank:05d}-of-{group.size:05d}.safetensors"

    def fill(temporary: Path) -> None:
        files = dict(group.values((name, save_pieces(temporary / name, tensors))))
        if group.first:
            manifest = {**facts, "files": files, "torch": torch.__version__}
            (temporary / "state.json").write_text(json.dumps(manifest, indent=1))

    write_together(target, fill, group)
    if group.first:
        for old in _complete(folder)[:-KEEP]:
            shutil.rmtree(old)


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("checkpoint-*") if path.is_dir())


def newest(folder: Path, warn: Any) -> Saved | None:
    """The newest sound checkpoint, or None where there is none yet.

    A damaged one is reported through `warn` and the one before is used; raises `ArtefactError` if all are damaged.
    """
    candidates = _complete(folder)
    for path in reversed(candidates):
        try:
            facts = json.loads((path / "state.json").read_text())
            if all(sha256_of(path / name) == sha256 for name, sha256 in facts["files"].items()):
                return Saved([path / name for name in facts["files"]], facts)
            warn(f"{path.name}: the hash differs from its manifest; trying the checkpoint before it")
        except (OSError, ValueError, KeyError) as error:
            warn(f"{path.name}: cannot be read ({error}); trying the checkpoint before it")
    if candidates:
        raise ArtefactError(f"{folder}: every checkpoint is damaged. Remove the folder to start again.")
    return None
