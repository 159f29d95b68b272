"""A file that only grows, and the SHA-256 of all that was committed: a resumed run finds out whether it was changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO

from feature_store.atomic import naming
from sae.errors import ArtefactError

CHUNK_BYTES = 1 << 20


class HashedFile:
    """`path` after its first `size` bytes, for appending; what lies beyond was never committed and is cut off.

    The first bytes are read once, which takes about a second a gigabyte, and the file is opened for writing with the
    first write. Raises `ArtefactError` if bytes are missing, or if their hash is known and another one.
    """

    def __init__(self, path: Path, size: int, sha256: str | None):
        self.path, self._size = path, size
        self._hash = hashlib.sha256()
        self._file: IO[bytes] | None = None

        n_read = self._read() if size else 0
        if n_read < size:
            raise ArtefactError(f"{path}: {n_read:,} of its {size:,} bytes are there; the file was cut or removed.")
        if sha256 is not None and self._hash.hexdigest() != sha256:
            raise ArtefactError(
                f"{path}: SHA-256 of its first {size:,} bytes is {self._hash.hexdigest()}, they were written with "
                f"{sha256}; the file is damaged. Remove the run's folder to start again."
            )

    def _read(self) -> int:
        n_read = 0
        if self.path.exists():
            with self.path.open("rb") as file:
                while chunk := file.read(min(CHUNK_BYTES, self._size - n_read)):
                    self._hash.update(chunk)
                    n_read += len(chunk)
        return n_read

    def write(self, data: bytes) -> int:
        """Appends; returns the number of bytes."""
        self._hash.update(data)
        with naming(self.path):
            if self._file is None:
                self._file = self.path.open("r+b" if self.path.exists() else "w+b")
                self._file.truncate(self._size)
                self._file.seek(self._size)
            return self._file.write(data)

    def commit(self) -> str:
        """Makes everything that was appended durable; returns the SHA-256 of the file."""
        with naming(self.path):
            if self._file is not None:
                self._file.flush()
                os.fsync(self._file.fileno())
        return self._hash.hexdigest()

    def close(self) -> None:
        """Closes the file; what was not committed is cut off when it is written again."""
        with naming(self.path):
            if self._file is not None:
                self._file.close()
