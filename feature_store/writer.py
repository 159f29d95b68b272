"""Builds generations beside the published ones and publishes them: immutable files, named by content, and one pointer."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from feature_store import schema
from feature_store.atomic import naming, read_json, sync_file, sync_folder, write_json
from feature_store.errors import StoreError

POINTER = "current.json"
KINDS = {"contexts": schema.CONTEXTS, "explanations": schema.EXPLANATIONS}
FILE_NAME = re.compile(r"(contexts|explanations)-[0-9a-f]{16}\.duckdb")
# The same rows are the same bytes: with one thread blocks have one order. Left out are compressions that draw a sample
# (fsst) or pack what lies in memory under a null (bitpacking, where columns have nulls).
UNSTABLE = {"contexts": "fsst,dict_fsst", "explanations": "fsst,dict_fsst,bitpacking"}


class GenerationWriter:
    """One generation under construction; nothing of it is visible before `publish`.

    A write that fails is an `OSError` that names the file.
    """

    def __init__(self, store: Path, kind: str):
        store.mkdir(parents=True, exist_ok=True)
        self.store, self.kind = store, kind
        self.path = store / f"{kind}.building"
        for leftover in (self.path, self.path.with_suffix(".building.wal")):
            leftover.unlink(missing_ok=True)

        self.connection = duckdb.connect()
        self.connection.execute("set autoinstall_known_extensions=false; set autoload_known_extensions=false")
        self.connection.execute(f"set threads=1; set disabled_compression_methods='{UNSTABLE[kind]}'")
        with self._writing():
            self.connection.execute(f"attach '{self.path}' as built (storage_version '{schema.STORAGE_VERSION}')")
            self.connection.execute("use built; begin transaction")
            for statement in KINDS[kind]:
                self.connection.execute(statement)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """DuckDB's own exceptions for a failed write become an `OSError` that names the file."""
        try:
            with naming(self.path):
                yield
        except duckdb.Error as error:
            text = str(error)
            if isinstance(error, duckdb.IOException | duckdb.FatalException) or "write" in text:
                number = errno.ENOSPC if "No space" in text else errno.EIO
                raise OSError(number, text.splitlines()[0], str(self.path)) from error
            raise

    def meta(self, facts: dict[str, Any]) -> None:
        """Stores facts about the generation, each as JSON."""
        facts = {"format_version": schema.FORMAT_VERSION, "kind": self.kind, **facts}
        rows = [(key, json.dumps(value)) for key, value in facts.items()]
        with self._writing():
            self.connection.executemany("insert into meta values (?, ?)", rows)

    def insert(self, table: str, columns: dict[str, Any]) -> None:
        """Appends columns (lists or arrays of one length) to a table of the schema."""
        import pyarrow as pa

        arrow = pa.table({name: pa.array(values) for name, values in columns.items()})
        names = ", ".join(columns)
        self.connection.register("incoming", arrow)
        with self._writing():
            self.connection.execute(f"insert into {table} ({names}) select {names} from incoming").fetchall()
        self.connection.unregister("incoming")

    def insert_file(self, table: str, path: Path) -> None:
        """Appends the rows of a Parquet file to a table of the schema."""
        statement = f"insert into {table} by name select * from read_parquet(?)"
        with self._writing():
            self.connection.execute(statement, [str(path)]).fetchall()

    def publish(self) -> str:
        """Commits, renames the file to a name made of its SHA-256, and moves the pointer to it; returns the name."""
        with self._writing():
            self.connection.execute("commit; use memory; detach built")
            self.connection.close()
            sync_file(self.path)
            digest = _sha256(self.path)
            name = f"{self.kind}-{digest[:16]}.duckdb"
            self.path.replace(self.store / name)
            sync_folder(self.store)  # the file has its name before anything points to it

        pointer = read_pointer(self.store)
        replaced = pointer.get(self.kind, {}).get("file")
        pointer[self.kind] = {"file": name, "sha256": digest}
        write_json(self.store / POINTER, pointer)
        if replaced and replaced != name:
            (self.store / replaced).unlink(missing_ok=True)

        return name


def _sha256(path: Path) -> str:
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
            known = _verified[path] = (state.st_size, state.st_mtime_ns, _sha256(path))
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file, but {POINTER} names it.") from None
    if known[2] != sha256:
        raise StoreError(f"{path}: SHA-256 is {known[2]}, it was published with {sha256}; the file is damaged.")


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
    return match is not None and match[1] == kind


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
        and (FILE_NAME.fullmatch(path.name) or path.name.startswith(tuple(f"{kind}.building" for kind in KINDS)))
    ]
    for path in leftovers:
        path.unlink()
    return [path.name for path in leftovers]


def drop(store: Path, kinds: Iterable[str]) -> None:
    """Removes published generations of some kinds, pointer first."""
    pointer = read_pointer(store)
    removed = [pointer.pop(kind)["file"] for kind in kinds if kind in pointer]
    if removed:
        write_json(store / POINTER, pointer)
        for name in removed:
            (store / name).unlink(missing_ok=True)
