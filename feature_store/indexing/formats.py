"""What a token looks like and where it stands: classes on which a feature may fire whatever the word is."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Integer

CLASSES = (
    "line breaks", "spaces", "numbers", "punctuation", "words in capitals", "capitalised words", "words",
    "parts of words", "other scripts",
)  # fmt: skip
FORMATS = (*CLASSES, *(f"{name} at the start of a line" for name in CLASSES))
POSITION_EDGES = np.array([0, 1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
N_POSITIONS = len(POSITION_EDGES)


def _class_of(token: bytes) -> int:
    text = token.decode("utf-8", "replace")
    bare = text.strip()
    if not bare:
        return 0 if "\n" in text or "\r" in text else 1
    if bare.isdecimal():
        return 2
    if not any(c.isalnum() for c in bare):
        return 8 if any(ord(c) > 0x2FF for c in bare) and not bare.isascii() else 3
    if not bare.isascii():
        return 8
    if bare.isupper() and len(bare) > 1:
        return 4
    if bare[0].isupper():
        return 5

    return 6 if text[0].isspace() else 7


def classes_of(vocabulary: list[bytes]) -> Int[np.ndarray, " vocabulary"]:
    """Index into `CLASSES` of every token id; a word without a space before it counts as part of a word."""
    return np.array([_class_of(token) for token in vocabulary], np.int64)


def normal_text(token: bytes) -> str:
    """A token's text without surrounding space and in lower case; spaces and line breaks are spelled out."""
    text = token.decode("utf-8", "replace")
    shown = text.strip().lower()
    return shown or text.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def first_of_same_text(vocabulary: list[bytes]) -> Int[np.ndarray, " vocabulary"]:
    """For every token id, the smallest id with the same normal text."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(normal_text(token), number) for number, token in enumerate(vocabulary)], np.int64)


def breaks_line(vocabulary: list[bytes]) -> Bool[np.ndarray, " vocabulary"]:
    """Whether a line begins after a token: its bytes end with a line break and perhaps spaces."""
    return np.array([token.rstrip(b" \t").endswith((b"\n", b"\r")) for token in vocabulary])


def formats_of(
    ids: Integer[np.ndarray, " tokens"],
    places: Int[np.ndarray, " tokens"],
    classes: Int[np.ndarray, " vocabulary"],
    breaks: Bool[np.ndarray, " vocabulary"],
) -> Int[np.ndarray, " tokens"]:
    """Index into `FORMATS` of every token of a stream; `places` counts tokens from the start of the document."""
    after_break = np.concatenate([[True], breaks[ids[:-1]]]) | (places == 0)
    return classes[ids] + len(CLASSES) * after_break


def places_of(documents: Integer[np.ndarray, "contexts ctx_len"]) -> Int[np.ndarray, " tokens"]:
    """Tokens since the start of the document or of the context, flat, of documents [contexts, ctx_len]."""
    starts = np.ones(documents.shape, bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    flat = np.arange(documents.size)
    return flat - np.maximum.accumulate(np.where(starts.reshape(-1), flat, 0))


def position_bin(places: Int[np.ndarray, "*places"]) -> Int[Any, "*places"]:
    """Index of the range of `POSITION_EDGES` that contains a place."""
    return np.searchsorted(POSITION_EDGES, places, side="right") - 1


def position_name(index: int) -> str:
    """The name of a range of positions, counted from 0."""
    low = int(POSITION_EDGES[index])
    if index + 1 == N_POSITIONS:
        return f"{low} and later"
    high = int(POSITION_EDGES[index + 1]) - 1
    return str(low) if high == low else f"{low} to {high}"
