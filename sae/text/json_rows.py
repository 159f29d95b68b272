"""Rows of JSON files: an object on each line, or one list of objects. Every row may have fields of its own."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import Any

from sae.errors import DataError, UnavailableError

SHOWN = 60  # characters of a line that cannot be read


def rows(file: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON file, perhaps compressed (.gz, .bz2, .xz, .zip), perhaps at an address, in order.

    Bytes that are not UTF-8 are read as U+FFFD. Raises `DataError` naming the line if one is not an object, and
    `UnavailableError` if an address does not answer.
    """
    import fsspec

    opened: Any = fsspec.open(file, "rb", compression="infer")
    try:
        with opened as stream:
            lines = (line for line in stream if line.strip())
            first = next(lines, b"")
            if first.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
                yield from _items(file, first + stream.read())
            else:
                yield from _objects(file, chain([first], lines) if first else lines)
    except (OSError, EOFError, zlib.error) as error:
        if "://" in file:
            raise UnavailableError(f"text {file}: {error}. Check the address and the network.") from None
        raise DataError(f"text {file}: {error}.") from None


def _items(file: str, data: bytes) -> Iterator[dict[str, Any]]:
    try:
        items = json.loads(data.decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"text {file}: it begins as a list and is not valid JSON ({error}).") from None
    yield from (_checked(file, f"item {number}", item) for number, item in enumerate(items))


def _objects(file: str, lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        text = line.decode("utf-8-sig", errors="replace")
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            shown = text.strip()[:SHOWN]
            raise DataError(
                f"text {file}, line {number} with text on it: not valid JSON ({error}): {shown!r}. "
                "A JSON file has an object on each line, or is one list of objects."
            ) from None
        yield _checked(file, f"line {number}", row)


def _checked(file: str, place: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"text {file}, {place}: found a JSON {type(row).__name__}; an object with columns is wanted.")
    return row
