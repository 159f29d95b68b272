"""The files of a dictionary that people may download: which there are, their hashes, and all of them as one archive."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

from feature_store.pointer import DATABASES, trust
from server.edition import READ_FILES, STORE, Edition
from server.file_digests import EARLY, Digest, FileState, read_digest, state_of
from server.parts import FilePart, Part, close
from server.zip_archive import Member, zip_parts

OCTETS, PARQUET = "application/octet-stream", "application/vnd.apache.parquet"
MEDIA_TYPES = {
    "card.json": "application/json",
    "weights.safetensors": OCTETS,
    "metrics.json": "application/json",
    "labels.json": "application/json",
    "training.jsonl": "application/x-ndjson",
    "features.parquet": PARQUET,
    "contexts.parquet": PARQUET,
    "concepts.parquet": PARQUET,
    "concepts.json": "application/json",
    "token_latents.parquet": PARQUET,
    "curves.png": "image/png",
    "density.png": "image/png",
    "zf.png": "image/png",
    "zf.csv": "text/csv",
    "head_shares.safetensors": OCTETS,
    "report.md": "text/markdown",
}
BUNDLE = "dictionary.zip"
PAGES_SUFFIX = ".pages"  # they follow from the databases


class DamagedFile(Exception):
    """A file whose bytes are not those that the dictionary was published with."""


class Place(NamedTuple):
    """Where in the folder a file on offer is. If its content is checked by other means, it may be a link."""

    path: str
    media_type: str
    is_checked: bool = False


class OpenFile(NamedTuple):
    """A file on offer, open: what it holds stays the same when another takes its place on disk."""

    name: str
    place: Place
    part: FilePart
    digest: Digest


@dataclass(frozen=True)
class Download:
    """What is sent of one file, or of the archive of all, which has no hash because it is put together on the way."""

    name: str
    media_type: str
    parts: list[Part]
    etag: str
    sha256: str | None


class Downloads:
    """The files on offer of one dictionary folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._digests: dict[str, Digest] = {}
        self._locks: dict[
            str, threading.Lock
        ] = {}  # one for each file, so that no reader waits for another file's hash

    def check(self, sha256_by_path: dict[str, str]) -> None:
        """Compares files with the hashes that they were published with; raises `DamagedFile`. Weights may be absent.

        Files are read side by side, since hashing needs no interpreter.
        """
        with ThreadPoolExecutor() as threads:
            list(threads.map(self.check_file, *zip(*sha256_by_path.items(), strict=True)))

    def trust(self, sha256_by_path: dict[str, str]) -> None:
        """Takes files of the store for what they were published as, until `check` has read them; they must be there."""
        for path, sha256 in sha256_by_path.items():
            if path.startswith(STORE):
                if not (self.folder / path).is_file():
                    raise DamagedFile(f"{path} is not there.")
                trust(self.folder / path, sha256)

    def check_file(self, path: str, sha256: str) -> None:
        """Compares one file with its hash; raises `DamagedFile`."""
        file = self._open(path, Place(path, OCTETS, is_checked=True))
        if file is None and path.startswith(STORE):
            raise DamagedFile(f"{path} is not there.")
        if file is None:
            return
        file.part.file.close()
        if file.digest.sha256 != sha256:
            raise DamagedFile(f"{path} is damaged: its SHA-256 is {file.digest.sha256}, published was {sha256}.")
        if path.startswith(STORE):
            trust(self.folder / path, sha256)

    def open(self, edition: Edition, name: str) -> Download | None:
        """The file of that name, or the archive of all files; None if there is none. No path can be expressed.

        Raises `FileNotFoundError` if a generation of the edition is gone, because a newer one is published.
        """
        if name == BUNDLE:
            return self._bundle(edition, self._open_all(edition))
        place = _places(edition).get(name)
        file = self._open(name, place) if place else None
        return _download(file) if file else None

    def open_all(self, edition: Edition) -> list[Download]:
        """Every file on offer, and the archive of them last. Raises as `open` does."""
        files = self._open_all(edition)
        return [*map(_download, files), self._bundle(edition, files)]

    def _open_all(self, edition: Edition) -> list[OpenFile]:
        files: list[OpenFile] = []
        try:
            for name, place in _places(edition).items():
                if file := self._open(name, place):
                    files.append(file)
                elif place.path.startswith(STORE):
                    raise FileNotFoundError(place.path)
        except BaseException:
            close([file.part for file in files])
            raise
        return files

    def _open(self, name: str, place: Place) -> OpenFile | None:
        """The file; None if it is absent, no file, or a link to something that nothing checks."""
        try:
            flags = os.O_RDONLY | os.O_NONBLOCK | (0 if place.is_checked else os.O_NOFOLLOW)
            file = FileIO(os.open(self.folder / place.path, flags))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):
                return None
            raise
        status = os.fstat(file.fileno())
        if not S_ISREG(status.st_mode):
            file.close()
            return None
        digest = self._digest(place.path, file, state_of(status))
        return OpenFile(name, place, FilePart(file, status.st_size), digest)

    def _digest(self, path: str, file: FileIO, state: FileState) -> Digest:
        """Hashes of an open file, computed once for each state of it."""
        with self._locks.setdefault(path, threading.Lock()):
            digest = self._digests.get(path)
            if digest is None or digest.state != state:
                digest = EARLY.take(self.folder / path, state) or read_digest(file, state)
                self._digests[path] = digest
        return digest

    def _bundle(self, edition: Edition, files: list[OpenFile]) -> Download:
        """A zip of all files, laid out as the dictionary folder; its store pointer names the generations in it."""
        root = self.folder.resolve().name
        generations = {kind: edition.store.pointer[kind] for kind in DATABASES if kind in edition.store.pointer}
        pointer = (json.dumps(generations, indent=1) + "\n").encode()
        members = [
            *(Member(f"{root}/{file.place.path}", file.part, file.digest.crc32) for file in files),
            Member(f"{root}/{STORE}current.json", pointer, zlib.crc32(pointer)),
        ]
        content = [(member.name, member.crc32, len(member.part)) for member in members]
        hashes = [file.digest.sha256 for file in files]
        etag = hashlib.sha256(json.dumps([content, hashes]).encode()).hexdigest()
        return Download(BUNDLE, "application/zip", zip_parts(members), etag=etag, sha256=None)


def _download(file: OpenFile) -> Download:
    sha256 = file.digest.sha256
    return Download(file.name, file.place.media_type, [file.part], etag=sha256, sha256=sha256)


def _places(edition: Edition) -> dict[str, Place]:
    """Everything that may be on offer, by name."""
    checked = {path for path in edition.published_hashes if not path.endswith(PAGES_SUFFIX)}
    places = {name: Place(name, kind, name in checked or name in READ_FILES) for name, kind in MEDIA_TYPES.items()}
    return places | {path.removeprefix(STORE): Place(path, OCTETS, True) for path in checked}
