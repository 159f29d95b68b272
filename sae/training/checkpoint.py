"""Resumable state of a training run: one folder per checkpoint, whole or absent, checked by hash when it is read.

Every process of a run writes a file of its own. What is spread over processes is kept in pieces, so that any number of
processes can resume.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from feature_store.errors import JsonFileError
from sae.errors import ArtefactError
from sae.foundation.distributed import ALONE, Processes
from sae.foundation.downloads import sha256_of
from sae.foundation.files import read_sealed, write_sealed
from sae.foundation.screen import Progress
from sae.foundation.tensor_files import Piece, TensorFiles, save_tensors, write_folder_together

N_KEPT = 2  # the newest and the one before it, in case the newest is damaged


class Checkpoint(NamedTuple):
    """The tensors of a checkpoint, and the facts written beside them."""

    tensors: TensorFiles
    facts: dict[str, Any]


def save(
    folder: Path,
    number: int,
    tensors: dict[str, Shaped[Tensor, " ..."] | Piece],
    facts: dict[str, Any],
    *,
    processes: Processes = ALONE,
) -> None:
    """Writes checkpoint `number`, every process its own tensors, and removes all but the newest `N_KEPT`."""
    target = folder / f"checkpoint-{number:012d}"
    name = f"state-{processes.rank:05d}-of-{processes.world_size:05d}.safetensors"

    def fill(temporary: Path) -> None:
        files = dict(processes.all_gather_objects((name, save_tensors(temporary / name, tensors))))
        if processes.is_first:
            manifest = {**facts, "files": files, "torch": torch.__version__}
            write_sealed(temporary / "state.json", manifest)

    write_folder_together(target, fill, processes)
    if processes.is_first:
        for old in _complete(folder)[:-N_KEPT]:
            shutil.rmtree(old)


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("checkpoint-*") if path.is_dir())


def newest(folder: Path, progress: Progress) -> Checkpoint | None:
    """The newest sound checkpoint, or None if there is none yet.

    If it is damaged, `progress` says so and the one before it is used. Raises `ArtefactError` if all are damaged.
    """
    candidates = _complete(folder)
    for path in reversed(candidates):
        try:
            facts = read_sealed(path / "state.json")
            if all(sha256_of(path / name) == sha256 for name, sha256 in facts["files"].items()):
                return Checkpoint(TensorFiles([path / name for name in facts["files"]]), facts)
            progress.say(f"{path.name}: the hash differs from its manifest; trying the checkpoint before it")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, JsonFileError) as error:
            progress.say(f"{path.name}: cannot be read ({error}); trying the checkpoint before it")

    if candidates:
        raise ArtefactError(f"{folder}: every checkpoint is damaged. Remove the folder to start again.")

    return None
