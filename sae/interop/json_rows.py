"""Rows of .jsonl files, plain or gzipped, read one at a time as the word of a stranger."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from sae.errors import ArtefactError

LONGEST_ROW = 4 << 20  # bytes
MOST_UNPACKED = 200  # times the size of a gzipped file; rows of numbers and words pack to a tenth
LEAST_UNPACKED = 64 << 20  # bytes that a file may unpack to, however small it is
MOST_FEATURES = 1 << 24


class JsonRow:
    """A JSON object in a file. What is asked of it has the type that is wanted, or `ArtefactError` names the line."""

    def __init__(self, values: dict[str, Any], where: str):
        self._values, self._where = values, where

    def error(self, problem: str) -> ArtefactError:
        """An error about this row."""
        return ArtefactError(f"{self._where}: {problem}.")

    def text(self, key: str, otherwise: str) -> str:
        """The text of a key; a number as it is written; `otherwise` if it is absent or null."""
        value = self._values.get(key)
        if value is None:
            return otherwise
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value)
        raise self.error(f"{key} is {_shown(value)}, a text is wanted")

    def number(self, key: str, otherwise: float) -> float:
        """The finite number of a key; `otherwise` if it is absent or null."""
        value = self._values.get(key)
        return otherwise if value is None else self._finite(value, key)

    def feature(self, key: str) -> int:
        """The number of a feature, which may be written as a text."""
        text = self.text(key, "")
        if not re.fullmatch(r"[0-9]{1,8}", text) or int(text) >= MOST_FEATURES:
            raise self.error(f"{key} is {_shown(text)}, a whole number below {MOST_FEATURES:,} is wanted")
        return int(text)

    def pairs(self, items: str, values: str, kind: type) -> tuple[list[Any], list[float]]:
        """Two lists of one length: things of one kind, and finite numbers; empty if they are absent or null."""
        things, numbers = (self._values.get(key) or [] for key in (items, values))
        if not isinstance(things, list) or not all(isinstance(t, kind) and not isinstance(t, bool) for t in things):
            raise self.error(f"{items} is no list of {'texts' if kind is str else 'whole numbers'}")
        if not isinstance(numbers, list) or len(numbers) != len(things):
            raise self.error(f"{values} is no list of {len(things)} numbers, one for each of {items}")
        return things, [self._finite(number, values) for number in numbers]

    def _finite(self, value: Any, key: str) -> float:
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and abs(value) < 1e30
        ):
            return float(value)
        raise self.error(f"{key} holds {_shown(value)}, a number is wanted")


def first_row(path: Path) -> JsonRow:
    """The first row of a file; a row without keys if there is none."""
    rows = _rows(path) if path.exists() else iter(())
    return next(rows, JsonRow({}, str(path)))


def json_rows(folder: Path, table: str) -> Iterator[JsonRow]:
    """All rows of `folder`/`table`/batch-0.jsonl.gz, batch-1.jsonl.gz, ... in their order; none if there is no such folder."""
    files = [path for pattern in ("*.jsonl.gz", "*.jsonl") for path in (folder / table).glob(pattern)]
    for path in sorted(files, key=_number):
        yield from _rows(path)


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"\d+", path.name)
    return int(digits[0][:9]) if digits else -1, path.name


def _rows(path: Path) -> Iterator[JsonRow]:
    allowed = max(MOST_UNPACKED * path.stat().st_size, LEAST_UNPACKED)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            unpacked = 0
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_ROW), b""), 1):
                unpacked += len(line)
                if unpacked > allowed or len(line) >= LONGEST_ROW:
                    raise ArtefactError(f"{path}: line {number} or the file is longer than rows of features can be.")
                if line.strip():
                    yield _parsed(line, f"{path}: line {number}")
    except (OSError, EOFError, zlib.error) as error:
        raise ArtefactError(f"{path}: cannot be read ({error}). Fetch it again.") from None


def _parsed(line: bytes, where: str) -> JsonRow:
    try:
        values = orjson.loads(line)
    except ValueError as error:
        raise ArtefactError(f"{where}: not valid JSON ({error}).") from None
    if not isinstance(values, dict):
        raise ArtefactError(f"{where}: a JSON object is wanted, there is {_shown(values)}.")
    return JsonRow(values, where)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
