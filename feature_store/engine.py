"""One DuckDB instance that reads the generations of many stores: one pool of memory, and nothing outside their folders."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import duckdb

from feature_store.cursors import cursor_of


class Engine:
    """A DuckDB instance without write access; a file is attached when it is first asked for, and once.

    What a store's own views read is bounded too: no file but those under `folders` can be opened.
    """

    def __init__(self, folders: Iterable[Path], memory_bytes: int | None = None):
        self.connection = duckdb.connect()
        allowed = ", ".join(quoted(str(folder.resolve())) for folder in folders)
        limit = f"set memory_limit='{memory_bytes // 1_000_000}MB';" if memory_bytes else ""
        self.connection.execute(
            "set autoinstall_known_extensions=false; set autoload_known_extensions=false; set threads=1;"
            f"{limit} set temp_directory=''; set allowed_directories=[{allowed}];"
            "set enable_external_access=false; set lock_configuration=true"
        )
        self._lock = threading.Lock()
        self._users: dict[str, int] = {}  # catalog -> stores that read it
        self._catalogs: dict[Path, str] = {}
        self._attached = 0
        self._is_closed = False

    def attach(self, path: Path, catalog_of: str) -> str:
        """The name of the catalog that a file is attached as; `catalog_of` begins it. Ends with `release`."""
        path = path.resolve()
        with self._lock:
            name = self._catalogs.get(path)
            if name is None:
                name = f"{catalog_of}_{self._attached}"
                self.connection.execute(f"attach {quoted(str(path))} as {name} (read_only)")
                self._attached += 1
                self._catalogs[path] = name
            self._users[name] = self._users.get(name, 0) + 1
        return name

    def create(self, catalog_of: str, statements: Iterable[str]) -> str:
        """The name of a catalog in memory, with the tables that the statements make. Ends with `release`."""
        with self._lock:
            name = f"{catalog_of}_{self._attached}"
            self._attached += 1
            cursor = self.connection.cursor()
            cursor.execute(f"attach ':memory:' as {name}; use {name}")
            for statement in statements:
                cursor.execute(statement)
            self._users[name] = 1
        return name

    def release(self, name: str) -> None:
        """Detaches a catalog that no store reads any more."""
        with self._lock:
            self._users[name] -= 1
            if self._users[name] or self._is_closed:
                return
            del self._users[name]
            self._catalogs = {path: other for path, other in self._catalogs.items() if other != name}
            self.connection.execute(f"detach {name}")

    def cursor(self, catalogs: Iterable[str]) -> duckdb.DuckDBPyConnection:
        """A cursor for which tables of these catalogs need no prefix; the request being answered can interrupt it."""
        cursor = cursor_of(self.connection)
        cursor.execute(f"set search_path='{','.join(f'{name}.main' for name in catalogs)}'")
        return cursor

    def close(self) -> None:
        """Closes the instance."""
        with self._lock:
            self._is_closed = True
            self.connection.close()


def quoted(text: str) -> str:
    """A text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"
