"""An open store: the published generations of one dictionary, read-only."""

from __future__ import annotations

import json
import weakref
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from jaxtyping import Int

from feature_store import schema
from feature_store.engine import Engine
from feature_store.errors import StoreError
from feature_store.lookup import pages, vocabulary
from feature_store.lookup.columns import Columns
from feature_store.lookup.pages import Pages
from feature_store.lookup.vocabulary import Vocabulary
from feature_store.pointer import DATABASES, PAGES, read_pointer, verify

LOADING_BYTES = 400_000_000  # of DuckDB, while narrow columns are read
LOADED = ("document_names", "document_starts", "vocabulary", "columns")  # what is read when it is first asked for


class Store:
    """The published generations of one dictionary, opened read-only; make a cursor per request.

    Stores of one `engine` share its memory; without one, a store has an engine of its own. `pointer` says which files are
    read, other than those that are published.
    """

    def __init__(self, folder: Path, engine: Engine | None = None, *, pointer: dict[str, Any] | None = None):
        self.folder = folder
        self.pointer = read_pointer(folder) if pointer is None else pointer
        if "contexts" not in self.pointer:
            raise StoreError(f"{folder}: no published generation. Run sae-train to its end first.")

        for entry in self.pointer.values():
            verify(folder / entry["file"], entry["sha256"])
        self._owns_engine = engine is None
        self.engine = engine or Engine([folder])
        self._catalogs: list[str] = []
        self._close = weakref.finalize(self, _release, self.engine, self._catalogs)
        try:
            for kind in DATABASES:
                self._attach(kind)
        except BaseException:
            self.close()
            raise

        rows = self.cursor().execute(f"select key, value from {self._catalogs[0]}.meta").fetchall()
        self.meta = {key: json.loads(value) for key, value in rows}
        self.floor: float | None = self._floor()
        self.generation = "-".join(self.pointer[kind]["sha256"][:12] for kind in DATABASES if kind in self.pointer)
        self.pages = {kind: self._pages_of(kind) for kind in PAGES}

    def _attach(self, kind: str) -> None:
        """Adds the catalog of one generation; raises `StoreError` if it cannot be read."""
        try:
            name = self._attached(self.engine, kind)
            self._catalogs.append(name)
            if kind not in self.pointer:
                return
            query = f"select value from {name}.meta where key = 'format_version'"
            versions = self.engine.connection.cursor().execute(query).fetchall()
        except duckdb.Error as error:
            path = self.folder / self.pointer[kind]["file"]
            raise StoreError(f"{path}: DuckDB cannot open it as a saedex store: {error}") from None
        if not versions or int(versions[0][0]) != schema.FORMAT_VERSION:
            written = versions[0][0] if versions else "unknown"
            raise StoreError(
                f"{self.folder / self.pointer[kind]['file']}: a store of format {written}; this saedex reads format "
                f"{schema.FORMAT_VERSION}. Index the run again: remove this store folder and the run's summary.json, then "
                "start sae-train with its config."
            )

    def _attached(self, engine: Engine, kind: str) -> str:
        """The catalog of one generation in an engine, or an empty one in memory if none of its kind is published."""
        if kind not in self.pointer:
            return engine.create(kind, schema.EXPLANATIONS)
        return engine.attach(self.folder / self.pointer[kind]["file"], kind)

    def _floor(self) -> float | None:
        """F2 that 95 % of the labels of random directions do not exceed; None if none were labelled."""
        query = f"select value from {self._catalogs[1]}.meta where key = 'floor'"
        rows = self.cursor().execute(query).fetchall()
        return json.loads(rows[0][0]) if rows else None

    def source_of(self, kind: str) -> str:
        """What pages of a kind are made of: contexts alone, or both generations."""
        return self.generation if kind == "feature_pages" else self.pointer["contexts"]["sha256"][:12]

    def _pages_of(self, kind: str) -> Pages | None:
        """The published pages of a kind; None if there are none of these generations and of this version."""
        if kind not in self.pointer:
            return None
        opened = Pages(self.folder / self.pointer[kind]["file"])
        is_current = opened.version == pages.VERSION and opened.source == self.source_of(kind)
        return opened if is_current else None

    @cached_property
    def document_names(self) -> dict[int, str]:
        """Names of the documents."""
        return dict(self.cursor().execute("select document, name from document").fetchall())

    @cached_property
    def document_starts(self) -> Int[np.ndarray, " documents"]:
        """Tokens of the stream before every document."""
        sizes = self.cursor().execute("select n_tokens from document order by document").fetchnumpy()["n_tokens"]
        return np.cumsum(sizes, dtype=np.int64) - sizes

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Text of the tokens."""
        return vocabulary.shared(self.cursor().execute("select token, text from token order by token").fetchall())

    @cached_property
    def columns(self) -> Columns:
        """The narrow columns of every feature. An engine of their own reads them, which gives its memory back."""
        with closing(Engine([self.folder], LOADING_BYTES)) as engine:
            catalogs = [self._attached(engine, kind) for kind in DATABASES]
            return Columns(partial(self.engine.cursor, tuple(self._catalogs)), engine.cursor(catalogs))

    @cached_property
    def n_features(self) -> int:
        """Features of the dictionary; their ids are 0, 1, ... n - 1."""
        return self.cursor().execute("select count(*) from feature").fetchall()[0][0]

    def forget(self) -> None:
        """Frees what was loaded when it was first asked for."""
        for name in LOADED:
            self.__dict__.pop(name, None)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A cursor for one query after another; a request that takes too long can interrupt it."""
        return self.engine.cursor(self._catalogs)

    def close(self) -> None:
        """Closes the store, and its engine if that is its own."""
        self._close()
        if self._owns_engine:
            self.engine.close()


def _release(engine: Engine, catalogs: list[str]) -> None:
    for name in catalogs:
        engine.release(name)
    catalogs.clear()
