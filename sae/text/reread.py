"""A source that is read again from its start when a run goes on: it must still hold what was read before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar

from sae.errors import DataError

NOTHING_READ = ""


class Named(Protocol):
    """A document, or a part of one."""

    @property
    def name(self) -> str: ...

    @property
    def text(self) -> str: ...


D = TypeVar("D", bound=Named)


class RereadStream(Generic[D]):
    """The documents of a source after the first `n_read`; `sha256` is the hash of all that were read so far.

    With the first document that is wanted the first `n_read` are read again, as every source has to be to come to its
    place, but not tokenized. Raises `DataError` if their hash is not the one that was `expected`; None expects nothing.
    """

    def __init__(self, where: str, documents: Iterator[D], n_read: int, expected: str | None):
        self.sha256 = expected or NOTHING_READ
        self._where, self._documents, self._n_read, self._expected = where, documents, n_read, expected

    def __iter__(self) -> Iterator[D]:
        return self

    def __next__(self) -> D:
        if self._n_read:
            self._read_again()
        document = next(self._documents)
        self.sha256 = _chained(self.sha256, document)
        return document

    def _read_again(self) -> None:
        self.sha256, n_read = NOTHING_READ, 0
        for n_read, document in enumerate(islice(self._documents, self._n_read), 1):  # noqa: B007 (its last value)
            self.sha256 = _chained(self.sha256, document)
        if self._expected is not None and (n_read, self.sha256) != (self._n_read, self._expected):
            raise DataError(
                f"{self._where}: not the text that this run was begun with. Of {self._n_read:,} documents that were read "
                f"then {n_read:,} are there, with SHA-256 {self.sha256 or 'of nothing'} instead of {self._expected}. "
                "Put the text back, or remove the run's folder to start again."
            )
        self._n_read = 0


def _chained(sha256: str, document: Named) -> str:
    return hashlib.sha256(f"{sha256}{document.name}\0{document.text}".encode("utf-8", "replace")).hexdigest()
