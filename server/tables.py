"""Rows as files that other programs read: one JSON object a line, or CSV that no spreadsheet takes for formulas."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import orjson

Rows = Iterable[list[dict[str, Any]]]
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # how a cell begins that a spreadsheet would calculate


class TableFormat(NamedTuple):
    """A format of tables: its media type, and how rows become bytes, some at a time."""

    media_type: str
    write: Callable[[Rows], Iterator[bytes]]


def ndjson(parts: Rows) -> Iterator[bytes]:
    """One JSON object a line."""
    for rows in parts:
        yield b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)


def csv_lines(parts: Rows) -> Iterator[bytes]:
    """CSV with a header (RFC 4180, UTF-8). A text that begins as a formula does gets an apostrophe in front."""
    text = io.StringIO()
    writer = csv.writer(text)
    is_first = True
    for rows in parts:
        if is_first and rows:
            writer.writerow(rows[0])
            is_first = False
        writer.writerows([_cell(value) for value in row.values()] for row in rows)
        yield text.getvalue().encode()
        text.seek(0)
        text.truncate()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


FORMATS: dict[Literal["ndjson", "csv"], TableFormat] = {
    "ndjson": TableFormat("application/x-ndjson", ndjson),
    "csv": TableFormat("text/csv; charset=utf-8", csv_lines),
}
