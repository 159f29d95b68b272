"""Durable writes: a file or folder is there whole or not at all; a run or dictionary folder has one owner."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from feature_store import atomic
from feature_store.atomic import (
    append_line,
    read_json,
    read_sealed,
    reserve,
    sync_file,
    sync_folder,
    write_bytes,
    write_json,
    write_sealed,
)
from sae.errors import ConfigError, DiskError, LockedError

__all__ = [
    "append_line",
    "dictionaries_in",
    "link",
    "owned",
    "read_json",
    "read_sealed",
    "reserve",
    "temporary_of",
    "write_bytes",
    "write_folder",
    "write_json",
    "write_sealed",
    "writing",
]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A write of the block that fails names `path`, whichever library it failed in."""
    try:
        with atomic.naming(path):
            yield
    except SafetensorError as error:
        raise DiskError(f"{path}: {error}. Check the disk and the permissions.") from error


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """As `feature_store.atomic.writing`, also for what safetensors writes."""
    with _naming(path), atomic.writing(path) as temporary:
        yield temporary


def link(source: Path, target: Path) -> None:
    """A second name of a file, or a copy where the disk is another one; one that is there stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except FileExistsError:
        return
    except OSError:
        with writing(target) as temporary:
            shutil.copyfile(source, temporary)


def temporary_of(folder: Path) -> Path:
    """The folder that `write_folder` fills before it gets its final name."""
    return folder.with_name(f".{folder.name}.writing")


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Calls `fill(temporary)`, syncs every file, then renames the temporary folder to `folder`, replacing it.

    If that fails, `folder` stays as it was, and the temporary one is removed.
    """
    temporary = temporary_of(folder)
    with _naming(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            fill(temporary)
            for path in (*sorted(temporary.rglob("*")), temporary):
                (sync_folder if path.is_dir() else sync_file)(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

        replaced_folder = folder.with_name(f".{folder.name}.old")
        if folder.exists():
            shutil.rmtree(replaced_folder, ignore_errors=True)
            folder.rename(replaced_folder)
        temporary.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(replaced_folder, ignore_errors=True)


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
    """Holds `folder` for this process during the block; raises `LockedError` naming the process that has it.

    Files that a killed owner was writing are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    owner = folder / ".owner"

    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner_name = owner.read_text("utf-8").strip() if owner.exists() else "another process"
        raise LockedError(
            f"{folder}: in use by {owner_name}. Wait for it, stop it, or choose another `name`."
        ) from None

    try:
        for half_written in folder.glob(".*.writing*"):
            if half_written.is_file():
                half_written.unlink()
        with _naming(owner):
            owner.write_text(f"process {os.getpid()} on {os.uname().nodename}\n", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):  # who held the folder matters no more; the error of the block does
            owner.unlink()
        lock.release()
