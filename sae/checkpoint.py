"""Resumable state of a training run: one folder per checkpoint, whole or absent, checked by hash on the way back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae.errors import ArtefactError
from sae.files import write_folder
from sae.sources import sha256_of

KEEP = 2


def save(folder: Path, number: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Writes checkpoint `number` and removes all but the newest `KEEP`."""

    def fill(target: Path) -> None:
        save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, target / "state.safetensors")
        manifest = {**facts, "sha256": sha256_of(target / "state.safetensors"), "torch": torch.__version__}
        (target / "state.json").write_text(json.dumps(manifest, indent=1))

    folder.mkdir(parents=True, exist_ok=True)
    write_folder(folder / f"checkpoint-{number:012d}", fill)
    for old in _complete(folder)[:-KEEP]:
        shutil.rmtree(old)


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("checkpoint-*") if path.is_dir())


def newest(folder: Path, warn: Any) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(tensors, facts) of the newest sound checkpoint, or None where there is none yet.

    A damaged one is reported through `warn` and the one before is used; raises `ArtefactError` if all are damaged.
    """
    candidates = _complete(folder)
    for path in reversed(candidates):
        try:
            facts = json.loads((path / "state.json").read_text())
            if sha256_of(path / "state.safetensors") == facts["sha256"]:
                return load_file(path / "state.safetensors"), facts
            warn(f"{path.name}: the hash differs from its manifest; trying the checkpoint before it")
        except (OSError, ValueError, KeyError) as error:
            warn(f"{path.name}: cannot be read ({error}); trying the checkpoint before it")
    if candidates:
        raise ArtefactError(f"{folder}: every checkpoint is damaged. Remove the folder to start again.")
    return None
