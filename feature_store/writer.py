"""Builds generations beside the published ones and publishes them: immutable files, named by content, and one pointer."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import duckdb

from feature_store import schema
from feature_store.atomic import naming, sync_file, sync_folder
from feature_store.lookup.rendering import write_pages
from feature_store.pointer import PAGES, move, read_pointer, sha256_of
from feature_store.store import Store

TABLES = {"contexts": schema.CONTEXTS, "explanations": schema.EXPLANATIONS}
COMMIT_BYTES = 256_000_000  # DuckDB keeps what is inserted in memory until it is committed
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
        self._uncommitted = 0
        self.connection.execute(f"set threads=1; set disabled_compression_methods='{UNSTABLE[kind]}'")
        with self._writing():
            self.connection.execute(f"attach '{self.path}' as built (storage_version '{schema.STORAGE_VERSION}')")
            self.connection.execute("use built; begin transaction")
            for statement in TABLES[kind]:
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
        self._inserted(arrow.nbytes)

    def insert_file(self, table: str, path: Path) -> None:
        """Appends the rows of a Parquet file to a table of the schema."""
        statement = f"insert into {table} by name select * from read_parquet(?)"
        with self._writing():
            self.connection.execute(statement, [str(path)]).fetchall()
        self._inserted(path.stat().st_size)

    def _inserted(self, n_bytes: int) -> None:
        """Commits from time to time; nobody sees the file before it is published."""
        self._uncommitted += n_bytes
        if self._uncommitted >= COMMIT_BYTES:
            with self._writing():
                self.connection.execute("commit; begin transaction")
            self._uncommitted = 0

    def publish(self, *, with_pages: bool = True) -> str:
        """Commits, renders the pages that follow from the rows, and moves the pointer; returns the name of the database.

        Files have names made of their SHA-256.
        """
        with self._writing():
            self.connection.execute("commit; use memory; detach built")
            self.connection.close()

        entries = {self.kind: self._named(self.kind, self.path, ".duckdb")}
        outdated = set(PAGES)
        if with_pages:
            with closing(Store(self.store, pointer={**read_pointer(self.store), **entries})) as built:
                outdated = {kind for kind, found in built.pages.items() if found is None}
                for kind, path in write_pages(built):
                    entries[kind] = self._named(kind, path, ".pages")

        move(self.store, entries, without=outdated)
        return entries[self.kind]["file"]

    def _named(self, kind: str, path: Path, suffix: str) -> dict[str, str]:
        """Gives a finished file the name that its content has; returns what the pointer says of it."""
        with naming(path):
            sync_file(path)
            digest = sha256_of(path)
            name = f"{kind}-{digest[:16]}{suffix}"
            path.replace(self.store / name)
            sync_folder(self.store)  # the file has its name before anything points to it
        return {"file": name, "sha256": digest}
