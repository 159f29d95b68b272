"""Builds generations beside the published ones and publishes them: immutable files, named by content, and one pointer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb

from feature_store import schema
from feature_store.atomic import write_json

POINTER = "current.json"
KINDS = {"contexts": schema.CONTEXTS, "explanations": schema.EXPLANATIONS}


class GenerationWriter:
    """One generation under construction; nothing of it is visible before `publish`."""

    def __init__(self, store: Path, kind: str):
        store.mkdir(parents=True, exist_ok=True)
        self.store, self.kind = store, kind
        self.path = store / f"{kind}.building"
        for leftover in (self.path, self.path.with_suffix(".building.wal")):
            leftover.unlink(missing_ok=True)

        self.connection = duckdb.connect()
        self.connection.execute("set autoinstall_known_extensions=false; set autoload_known_extensions=false")
        self.connection.execute(f"attach '{self.path}' as built (storage_version '{schema.STORAGE_VERSION}')")
        self.connection.execute("use built; begin transaction")
        for statement in KINDS[kind]:
            self.connection.execute(statement)

    def meta(self, facts: dict[str, Any]) -> None:
        """Stores facts about the generation, each as JSON."""
        facts = {"format_version": schema.FORMAT_VERSION, "kind": self.kind, **facts}
        rows = [(key, json.dumps(value)) for key, value in facts.items()]
        self.connection.executemany("insert into meta values (?, ?)", rows)

    def insert(self, table: str, columns: dict[str, Any]) -> None:
        """Appends columns (lists or arrays of one length) to a table of the schema."""
        import pyarrow as pa

        arrow = pa.table({name: pa.array(values) for name, values in columns.items()})
        names = ", ".join(columns)
        self.connection.register("incoming", arrow)
        self.connection.execute(f"insert into {table} ({names}) select {names} from incoming").fetchall()
        self.connection.unregister("incoming")

    def insert_file(self, table: str, path: Path) -> None:
        """Appends the rows of a Parquet file to a table of the schema."""
        self.connection.execute(f"insert into {table} by name select * from read_parquet(?)", [str(path)]).fetchall()

    def publish(self) -> str:
        """Commits, renames the file to a name made of its SHA-256, and moves the pointer to it; returns the name."""
        self.connection.execute("commit; use memory; detach built")
        self.connection.close()
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())

        name = f"{self.kind}-{digest[:16]}.duckdb"
        self.path.replace(self.store / name)
        pointer = read_pointer(self.store)
        replaced = pointer.get(self.kind, {}).get("file")
        pointer[self.kind] = {"file": name, "sha256": digest}
        write_json(self.store / POINTER, pointer)
        if replaced and replaced != name:
            (self.store / replaced).unlink(missing_ok=True)

        return name


def read_pointer(store: Path) -> dict[str, Any]:
    """The published generation of each kind, {kind: {file, sha256}}; empty if there is none."""
    path = store / POINTER
    return json.loads(path.read_text()) if path.exists() else {}


def drop(store: Path, kinds: Iterable[str]) -> None:
    """Removes published generations of some kinds, pointer first."""
    pointer = read_pointer(store)
    removed = [pointer.pop(kind)["file"] for kind in kinds if kind in pointer]
    if removed:
        write_json(store / POINTER, pointer)
        for name in removed:
            (store / name).unlink(missing_ok=True)
