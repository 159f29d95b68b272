"""The one door to the disk: files that are there whole or not at all, and that say whether they were changed since."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feature_store.errors import JsonFileError

SEAL = "seal"  # the key under which a sealed file keeps the hash of everything else in it
ZEROS = 1 << 20  # bytes that are written at a time if the system cannot set them aside


def sync_file(path: Path) -> None:
    """Makes the content of a file survive a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An `OSError` of the block that names no file, as that of a full disk, names `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; when the block ends well, the file there is synced and becomes `path`.

    Otherwise `path` stays as it was, and the file beside it is removed.
    """
    temporary = path.with_name(f".{path.stem}.writing{path.suffix}")
    with naming(path):
        try:
            yield temporary
            sync_file(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes beside the target, syncs, then renames over it."""
    with writing(path) as temporary:
        temporary.write_bytes(data)


def append_line(path: Path, line: str) -> None:
    """Adds a line to a log; a kill may leave it cut short."""
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value in a JSON file; raises `JsonFileError` naming it."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise JsonFileError(f"{path}: no such file.") from None
    except (ValueError, RecursionError) as error:
        raise JsonFileError(f"{path}: not valid JSON ({error}); the file is damaged.") from None


def write_sealed(path: Path, values: dict[str, Any]) -> None:
    """Writes `values` as JSON with their SHA-256 among them, atomically."""
    write_json(path, {**values, SEAL: _seal(values)})


def read_sealed(path: Path) -> dict[str, Any]:
    """The values of a file that `write_sealed` wrote; raises `JsonFileError` if anything in it was changed since.

    Files of saedex before 0.2 have no hash among their values.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise JsonFileError(f"{path}: a JSON object is wanted, found {type(values).__name__}; the file is damaged.")
    expected = values.pop(SEAL, None)
    if expected is not None and (actual := _seal(values)) != expected:
        raise JsonFileError(f"{path}: SHA-256 of its values is {actual}, it was written with {expected}.")
    return values


def _seal(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def reserve(path: Path, n_bytes: int) -> None:
    """Creates a file of zeros whose bytes the disk has set aside.

    A memory-mapped file without them ends the process with SIGBUS when the disk is full; here it is an `OSError`.
    """
    with naming(path), path.open("wb") as file:
        if sys.platform == "linux" and n_bytes:
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        else:
            for start in range(0, n_bytes, ZEROS):
                file.write(bytes(min(ZEROS, n_bytes - start)))
