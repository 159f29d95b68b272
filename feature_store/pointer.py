"""The pointer of a store: which generation of each kind is published, and whether its files are what they were."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from feature_store.atomic import read_json, write_json
from feature_store.errors import StoreError

POINTER = "current.json"
DATABASES = ("contexts", "explanations")
PAGES = ("context_pages", "feature_pages")  # bodies of the API, made of the databases
FILE_NAME = re.compile(
    r"(contexts|explanations)-[0-9a-f]{16}\.duckdb|(context_pages|feature_pages)-[0-9a-f]{16}\.pages"
)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_verified: dict[Path, tuple[int, int, str]] = {}  # size, time of the last change, SHA-256


def verify(path: Path, sha256: str) -> None:
    """Raises `StoreError` with both hashes if the file is not the one that was published.

    A process reads a file once, and again only if its size or the time of its last change differ.
    """
    try:
        state = path.stat()
        known = _verified.get(path)
        if known is None or known[:2] != (state.st_size, state.st_mtime_ns):
            known = _verified[path] = (state.st_size, state.st_mtime_ns, sha256_of(path))
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file, but {POINTER} names it.") from None
    if known[2] != sha256:
        raise StoreError(f"{path}: SHA-256 is {known[2]}, it was published with {sha256}; the file is damaged.")


def trust(path: Path, sha256: str) -> None:
    """Notes the hash of a file that somebody has just read whole, so that `verify` need not read it again."""
    state = path.stat()
    _verified[path] = (state.st_size, state.st_mtime_ns, sha256)


def read_pointer(store: Path) -> dict[str, Any]:
    """The published generation of each kind, {kind: {file, sha256}}; empty if there is none.

    Raises `StoreError` if the pointer is damaged.
    """
    path = store / POINTER
    if not path.exists():
        return {}
    pointer = read_json(path)
    if not isinstance(pointer, dict) or not all(map(_is_entry, pointer.items())):
        raise StoreError(f"{path}: not a pointer to published generations; the file is damaged.")
    return pointer


def _is_entry(item: tuple[str, Any]) -> bool:
    kind, entry = item
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("file", "sha256")):
        return False
    match = FILE_NAME.fullmatch(entry["file"])
    return match is not None and kind in match.groups()


def remove_leftovers(store: Path) -> list[str]:
    """Removes what a killed writer left: files under construction, and generations that nothing points to.

    Returns their names. The caller has the store to itself.
    """
    if not store.is_dir():
        return []
    published = {entry["file"] for entry in read_pointer(store).values()}
    leftovers = [
        path
        for path in sorted(store.iterdir())
        if path.name not in published
        and (
            FILE_NAME.fullmatch(path.name)
            or path.name.startswith(tuple(f"{kind}.building" for kind in (*DATABASES, *PAGES)))
        )
    ]
    for path in leftovers:
        path.unlink()
    return [path.name for path in leftovers]


def move(store: Path, entries: dict[str, dict[str, str]], without: Iterable[str] = ()) -> None:
    """Points to new files, each {file, sha256} of its kind, and no longer to kinds in `without`; removes what is replaced."""
    former = read_pointer(store)
    pointer = {kind: entry for kind, entry in former.items() if kind not in without} | entries
    write_json(store / POINTER, pointer)
    pointed_to = {entry["file"] for entry in pointer.values()}
    for entry in former.values():
        if entry["file"] not in pointed_to:
            (store / entry["file"]).unlink(missing_ok=True)


def drop_all(store: Path) -> None:
    """Removes everything that is published, pointer first."""
    if former := read_pointer(store):
        move(store, {}, without=former)
