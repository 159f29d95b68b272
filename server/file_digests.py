"""Hashes of files that are served; their reading can begin before the packages of the server are imported.

It imports nothing but the standard library: reading a gigabyte takes as long as the imports, and needs no interpreter.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Iterable
from concurrent.futures import Future
from io import FileIO
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

CHUNK_BYTES = 1 << 20
HASHED = ("store/*.duckdb", "store/*.pages", "*.safetensors")
CARDS = (
    "card.json",
    "dictionaries/*/card.json",
    "*/dictionaries/*/card.json",
)  # of dictionaries at a path that is served


class FileState(NamedTuple):
    """What changes whenever a file is replaced."""

    inode: int
    mtime_ns: int
    size: int


class Digest(NamedTuple):
    """What is known of the bytes of a file, and the state of the file in which they were read."""

    state: FileState
    sha256: str
    crc32: int


def state_of(status: os.stat_result) -> FileState:
    """The state of a file from its status."""
    return FileState(status.st_ino, status.st_mtime_ns, status.st_size)


def read_digest(file: FileIO, state: FileState) -> Digest:
    """Hashes of an open file, which is read to its end."""
    sha256, crc32 = hashlib.sha256(), 0
    while chunk := file.read(CHUNK_BYTES):
        sha256.update(chunk)
        crc32 = zlib.crc32(chunk, crc32)
    return Digest(state, sha256.hexdigest(), crc32)


class EarlyDigests:
    """Hashes whose files are read in the background; each is taken once."""

    def __init__(self) -> None:
        self._begun: dict[Path, Future[Digest | None]] = {}

    def begin(self, paths: Iterable[Path]) -> None:
        """Reads what dictionaries at the paths serve. Whoever leaves the process does not wait for it."""
        queue: SimpleQueue[tuple[Path, Future[Digest | None]]] = SimpleQueue()
        for card in sorted(card for path in paths for pattern in CARDS for card in path.glob(pattern)):
            for file in (file for name in HASHED for file in card.parent.glob(name)):
                self._begun[file] = Future()
                queue.put((file, self._begun[file]))
        spare_cores = max((os.cpu_count() or 1) - 1, 1)  # one is for the imports
        for _ in range(min(spare_cores, len(self._begun))):
            threading.Thread(target=self._read, args=(queue,), daemon=True).start()

    def take(self, path: Path, state: FileState) -> Digest | None:
        """The hashes of a file in this state, waited for; None if it was not begun, or has changed since."""
        begun = self._begun.pop(path, None)
        digest = begun.result() if begun else None
        return digest if digest and digest.state == state else None

    def _read(self, queue: SimpleQueue[tuple[Path, Future[Digest | None]]]) -> None:
        while True:
            try:
                path, future = queue.get_nowait()
            except Empty:
                return
            digest = None
            try:
                with FileIO(path) as file:
                    digest = read_digest(file, state_of(os.fstat(file.fileno())))
            except OSError:
                pass  # whoever opens the file says so
            finally:
                future.set_result(digest)


EARLY = EarlyDigests()
