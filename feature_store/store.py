"""An open store: the published generations of one dictionary, read-only, and the text of its tokens."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import duckdb

from feature_store import schema
from feature_store.cursors import cursor_of
from feature_store.errors import StoreError
from feature_store.writer import read_pointer, verify


class Store:
    """The published generations of one dictionary, opened read-only; make a cursor per request."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.pointer = read_pointer(folder)
        if "contexts" not in self.pointer:
            raise StoreError(f"{folder}: no published generation. Run sae-train to its end first.")

        self.connection = duckdb.connect()
        self.connection.execute("set autoinstall_known_extensions=false; set autoload_known_extensions=false")
        self.connection.execute("set threads=1")
        for kind in ("contexts", "explanations"):
            self._attach(kind)

        self.connection.execute("set enable_external_access=false; set lock_configuration=true")
        self.meta = dict(self.connection.execute("select key, value from contexts.meta").fetchall())
        self.meta = {key: json.loads(value) for key, value in self.meta.items()}
        self.generation = "-".join(self.pointer[k]["sha256"][:12] for k in sorted(self.pointer))

    def _attach(self, kind: str) -> None:
        """Attaches one generation, or an empty one in memory if none of its kind is published."""
        if kind in self.pointer:
            path = self.folder / self.pointer[kind]["file"]
            verify(path, self.pointer[kind]["sha256"])
            try:
                self.connection.execute(f"attach '{path}' as {kind} (read_only)")
                versions = self.connection.execute(
                    f"select value from {kind}.meta where key = 'format_version'"
                ).fetchall()
            except duckdb.Error as error:
                raise StoreError(f"{path}: DuckDB cannot open it as a saedex store: {error}") from None
            if not versions or int(versions[0][0]) != schema.FORMAT_VERSION:
                raise StoreError(f"{path}: format {versions}, this saedex reads format {schema.FORMAT_VERSION}.")
        else:
            self.connection.execute(f"attach ':memory:' as {kind}; use {kind}")
            for statement in schema.EXPLANATIONS:
                self.connection.execute(statement)
            self.connection.execute("use memory")

    @cached_property
    def document_names(self) -> dict[int, str]:
        """Names of the documents, read when they are first asked for: most dictionaries of a large server are not."""
        return dict(self.cursor().execute("select document, name from contexts.document").fetchall())

    @cached_property
    def token_bytes(self) -> dict[int, bytes]:
        """Text of the tokens, read when it is first asked for."""
        return dict(self.cursor().execute("select token, text from contexts.token").fetchall())

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A cursor for one query after another; a request that takes too long can interrupt it."""
        return cursor_of(self.connection)

    def close(self) -> None:
        """Closes the connection."""
        self.connection.close()

    def text_of(self, tokens: list[int]) -> list[str]:
        """Display text of each token. A character split over tokens is shown whole on its last one."""
        pieces, pending = [], b""
        for token in tokens:
            pending += self.token_bytes.get(token, b"")
            try:
                pieces.append(pending.decode("utf-8"))
                pending = b""
            except UnicodeDecodeError:
                if len(pending) < 4:
                    pieces.append("")
                else:
                    pieces.append(pending.decode("utf-8", "replace"))
                    pending = b""

        if pending and pieces:
            pieces[-1] += pending.decode("utf-8", "replace")

        return pieces

    def shown(self, token: int) -> str:
        """Display text of one token on its own."""
        return self.token_bytes.get(token, b"").decode("utf-8", "replace")

    def tokens_like(self, text: str) -> list[int]:
        """Ids of the tokens whose text equals `text`, both stripped and in lower case."""
        return self._by_text.get(text.strip().lower(), [])

    @cached_property
    def _by_text(self) -> dict[str, list[int]]:
        tokens: dict[str, list[int]] = {}
        for token in self.token_bytes:
            tokens.setdefault(self.shown(token).strip().lower(), []).append(token)
        return tokens
