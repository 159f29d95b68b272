"""Which documents are nearly the same: a key that near-duplicates share, so that no split tears them apart."""

from __future__ import annotations

import hashlib

import numpy as np
from numba import njit

WINDOW = 64  # bytes; two texts share a window if they have as many bytes in a row in common
BASE = 0x9E3779B97F4A7C15  # odd, as the polynomial's base must be


@njit(cache=True, nogil=True)
def _smallest_hash(text, window):  # pragma: no cover (compiled)
    """The smallest of the hashes of all windows of `text` [bytes]; a shorter text is one window."""
    base, leaving = np.uint64(BASE), np.uint64(1)
    for _ in range(window):
        leaving *= base

    value, smallest = np.uint64(0), np.uint64(0xFFFFFFFFFFFFFFFF)
    for place in range(text.size):
        value = value * base + np.uint64(text[place]) + np.uint64(1)
        if place >= window:
            value -= leaving * (np.uint64(text[place - window]) + np.uint64(1))
        if place >= window - 1 or place == text.size - 1:
            mixed = (value ^ (value >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)
            smallest = min(smallest, mixed ^ (mixed >> np.uint64(29)))

    return smallest


def similarity_key(text: str) -> int:
    """A 64-bit number that two texts share with probability |A and B| / |A or B|, A and B their sets of windows.

    It is the smallest hash of the text's windows of 64 bytes, case and white space made alike: MinHash with one
    hash function (Broder 1997, "On the resemblance and containment of documents").
    """
    plain = " ".join(text.lower().split()).encode("utf-8", "replace")
    return int(_smallest_hash(np.frombuffer(plain, np.uint8), WINDOW))


def is_held_out(key: int, fraction: float) -> bool:
    """Whether documents with this similarity key belong to the held-out stream."""
    digest = hashlib.sha256(key.to_bytes(8, "big")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
