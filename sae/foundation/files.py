"""Durable writes: a file or folder is there whole or not at all; a run folder has one owner."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from feature_store.atomic import sync_folder, write_bytes, write_json
from sae.errors import ConfigError, LockedError

__all__ = ["dictionaries_in", "owned", "temporary_of", "write_bytes", "write_folder", "write_json"]


def temporary_of(folder: Path) -> Path:
    """The folder that `write_folder` fills before it gets its final name."""
    return folder.with_name(f".{folder.name}.writing")


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Calls `fill(temporary)`, syncs every file, then renames the temporary folder to `folder`, replacing it."""
    temporary = temporary_of(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fill(temporary)

    for path in sorted(temporary.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())

    if folder.exists():
        replaced_folder = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(replaced_folder, ignore_errors=True)
        folder.rename(replaced_folder)
        temporary.rename(folder)
        shutil.rmtree(replaced_folder)
    else:
        temporary.rename(folder)

    sync_folder(folder.parent)


def dictionaries_in(path: Path) -> list[Path]:
    """`path` itself if it is a dictionary folder, else the dictionary folders of the run; raises `ConfigError`."""
    if (path / "card.json").exists():
        return [path]
    folders = sorted(p.parent for p in path.glob("dictionaries/*/card.json"))
    if not folders:
        raise ConfigError(f"{path}: neither a dictionary folder (card.json) nor a run with dictionaries.")
    return folders


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Holds `folder` for this process during the block; raises `LockedError` naming the process that has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    owner = folder / ".owner"

    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner_name = owner.read_text().strip() if owner.exists() else "another process"
        raise LockedError(
            f"{folder}: in use by {owner_name}. Wait for it, stop it, or choose another `name`."
        ) from None

    try:
        owner.write_text(f"process {os.getpid()} on {os.uname().nodename}\n")
        yield
    finally:
        lock.release()
