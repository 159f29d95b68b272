"""The cursors of one request, so that whoever answers it can interrupt queries that take too long."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Self

import duckdb

_of_request: ContextVar[Cursors] = ContextVar("cursors")


class Cursors:
    """Inside `with` it knows every cursor that the request opens, in the threads that work for it too."""

    def __init__(self) -> None:
        self._cursors: list[duckdb.DuckDBPyConnection] = []
        self._is_over = False

    def __enter__(self) -> Self:
        self._token = _of_request.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _of_request.reset(self._token)

    def interrupt(self) -> None:
        """Ends running queries with `duckdb.InterruptException`, and refuses those that would follow."""
        self._is_over = True
        for cursor in self._cursors:
            cursor.interrupt()

    def add(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Remembers a cursor; raises if the time of the request is over."""
        if self._is_over:
            raise duckdb.InterruptException("the time of this request is over")
        self._cursors.append(cursor)


def cursor_of(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """A new cursor, which the request that is being answered can interrupt."""
    cursor = connection.cursor()
    if cursors := _of_request.get(None):
        cursors.add(cursor)
    return cursor
