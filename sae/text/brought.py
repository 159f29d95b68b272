"""Texts that people bring: files of one text per line, tables with a column `text`, and texts with labels or scores."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from sae.errors import ConfigError, DataError
from sae.text.corpus import TABLES, documents, source_named
from sae.text.mixture import well_formed

MARK = re.compile(r"(\[\[.*?\]\])")


class Texts(NamedTuple):
    """Texts that have a property, and texts that do not."""

    positive: list[str]
    negative: list[str]


class ScoredTexts(NamedTuple):
    """Texts with a number each."""

    texts: list[str]
    scores: list[float]


class ClassedTexts(NamedTuple):
    """Texts with a class each, and the group that a text must not be parted from; without groups each is its own."""

    texts: list[str]
    labels: list[str]
    groups: list[str]


def lines(path: Path) -> list[str]:
    """The lines of a file of UTF-8 that have any text; raises `ConfigError` or `DataError`."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file.")
    out = []
    for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        try:
            out.append(line.decode("utf-8").rstrip("\r"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number}: byte {line[error.start]:#x} is not UTF-8. Save the file as UTF-8."
            ) from None
    return [line for line in out if line.strip()]


class MarkedText(NamedTuple):
    """A text, and the spans of letters (first, end) in it that show something."""

    text: str
    spans: list[tuple[int, int]]


class NamedText(NamedTuple):
    """A text, and the name that a reader can find it by."""

    name: str
    text: str


def named_texts(name: str) -> Iterator[NamedText]:
    """The texts of a file: its lines, or the column `text` of a .jsonl, .csv or .parquet file (or a folder or glob).

    Texts that are empty are left out. Raises `ConfigError` or `DataError`.
    """
    path = Path(name)
    if path.is_file() and path.suffix not in TABLES:
        yield from (NamedText(f"{path.name}#{number}", line) for number, line in enumerate(lines(path)))
        return
    for document in documents(source_named(name)):
        if not isinstance(document.content, str):
            raise DataError(f"{name}: {document.name} is no text. Give files whose column `text` holds texts.")
        text = well_formed(document.content)
        if text.strip():
            yield NamedText(document.name, text)


def some_texts(name: str, most: int | None) -> list[str]:
    """The first texts of a file, each once; raises `DataError` if there is none."""
    texts = list(dict.fromkeys(islice((text for _, text in named_texts(name)), most)))
    if not texts:
        raise DataError(f"{name}: holds no text.")
    return texts


def texts_of(positive: Path | None, negative: Path | None, labelled: Path | None) -> Texts:
    """The texts of two files with one text per line, or of a JSON-lines file with "text" and "label"."""
    if labelled is None:
        if positive is None or negative is None:
            raise ConfigError(
                "give --positive and --negative, each a file with one text per line, or one --labelled file."
            )
        return Texts(lines(positive), lines(negative))

    texts = Texts([], [])
    for number, line in enumerate(lines(labelled), 1):
        try:
            row = json.loads(line)
            if row["label"] not in (0, 1) or not isinstance(row["text"], str):
                raise ValueError
            (texts.positive if row["label"] else texts.negative).append(well_formed(row["text"]))
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f'{labelled}: line {number} is not an object with a "text" and a "label" (true or false).'
            ) from None

    return texts


def scored_texts(path: Path) -> ScoredTexts:
    """The texts and scores of a JSON-lines file with "text" and "score"; raises `DataError` naming the line."""
    out = ScoredTexts([], [])
    for number, line in enumerate(lines(path), 1):
        try:
            row = json.loads(line)
            text, score = row["text"], float(row["score"])
            if not isinstance(text, str) or isinstance(row["score"], bool) or score - score != 0:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise DataError(f'{path}: line {number} is not an object with a "text" and a finite "score".') from None
        out.texts.append(well_formed(text))
        out.scores.append(score)
    if not out.texts:
        raise DataError(f"{path}: holds no text.")
    return out


def classed_texts(path: Path) -> ClassedTexts:
    """The texts of a JSON-lines file with "text", "label" and perhaps "group"; raises `DataError` naming the line."""
    out = ClassedTexts([], [], [])
    for number, line in enumerate(lines(path), 1):
        try:
            row = json.loads(line)
            text, label, group = row["text"], row["label"], row.get("group", number)
            if not isinstance(text, str) or not isinstance(label, str | int) or not isinstance(group, str | int):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f'{path}: line {number} is not an object with a "text" and a "label" (a word or a number).'
            ) from None
        out.texts.append(well_formed(text))
        out.labels.append(str(label).lower() if isinstance(label, bool) else str(label))
        out.groups.append(str(group))
    if not out.texts:
        raise DataError(f"{path}: holds no text.")
    return out


def marked_texts(path: Path) -> list[MarkedText]:
    """The lines of a file, without the double brackets that mark a part of them, as in "She left [[Lyon]]."; raises `DataError`."""
    out = []
    for number, line in enumerate(lines(path), 1):
        text, spans = "", []
        for part in MARK.split(line):
            if part.startswith("[[") and part.endswith("]]"):
                spans.append((len(text), len(text) + len(part) - 4))
                part = part[2:-2]
            text += part
        if "[[" in text or "]]" in text or any(first == end for first, end in spans):
            raise DataError(
                f"{path}: line {number}: marks are [[ and ]] around a part of the text, one after the other."
            )
        out.append(MarkedText(text, spans))
    return out
