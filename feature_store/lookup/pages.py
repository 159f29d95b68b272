"""Answers of the API, made when a generation is published: compressed one by one in one file, and read from its map."""

from __future__ import annotations

import json
import mmap
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from feature_store.atomic import naming
from feature_store.errors import StoreError

VERSION = 2  # of the bodies: those of another version are not served
HEAD_BYTES = 512
LEVEL = 6
BLOCK = 256  # bodies that are compressed at a time


def compressed(body: bytes) -> bytes:
    """A body as a gzip member, which says nothing of when it was made."""
    return zlib.compress(body, LEVEL, wbits=31)


def write(path: Path, source: str, n: int, bodies: Iterable[bytes]) -> None:
    """Writes a file of `n` bodies that were made of the generations `source`.

    The file holds a head in JSON, padded to 512 bytes; then n + 1 offsets (uint64); then the members.
    """
    head = json.dumps({"saedex_pages": VERSION, "n": n, "source": source}).encode()
    offsets = np.zeros(n + 1, "<u8")
    with naming(path), path.open("wb") as file, ThreadPoolExecutor() as threads:
        file.write(head.ljust(HEAD_BYTES - 1) + b"\n")
        file.write(offsets.tobytes())
        offsets[0] = file.tell()
        for number, member in enumerate(_in_order(threads, bodies)):
            file.write(member)
            offsets[number + 1] = offsets[number] + len(member)
        file.seek(HEAD_BYTES)
        file.write(offsets.tobytes())


def _in_order(threads: ThreadPoolExecutor, bodies: Iterable[bytes]) -> Iterable[bytes]:
    """Members of the bodies, compressed some at a time."""
    block: list[bytes] = []
    for body in bodies:
        block.append(body)
        if len(block) == BLOCK:
            yield from threads.map(compressed, block)
            block = []
    yield from threads.map(compressed, block)


class Pages:
    """An open file of pages. `source` names the generations that they were made of."""

    def __init__(self, path: Path):
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            head = json.loads(self._map[:HEAD_BYTES])
            self.version, self.source, n = head["saedex_pages"], head["source"], head["n"]
            self._offsets = np.frombuffer(self._map, "<u8", count=n + 1, offset=HEAD_BYTES)
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: not a file of pages ({error}); the file is damaged.") from None
        if int(self._offsets[-1]) != len(self._map) or (np.diff(self._offsets.astype(np.int64)) < 0).any():
            raise StoreError(f"{path}: not a whole file of pages; the file is damaged.")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def member(self, number: int) -> bytes:
        """One body, compressed with gzip."""
        return self._map[int(self._offsets[number]) : int(self._offsets[number + 1])]

    def body(self, number: int) -> bytes:
        """One body."""
        return zlib.decompress(self.member(number), wbits=31)
