"""What a search finds, each with the reason, and words that searches share."""

from __future__ import annotations

from typing import NamedTuple

from feature_store.store import Store

FEW_TOKENS = 512  # of a text that are looked up


class Hit(NamedTuple):
    """A feature, the kind of search that found it, why, and how often it fires on a token that was searched."""

    feature: int
    kind: str
    why: str
    times: int | None = None


class Found(NamedTuple):
    """Hits, the best first, how many there are, and what the reader should know of the search."""

    hits: list[Hit]
    total: int
    notes: list[str]


NOTHING = Found([], 0, [])


def share_of(value: float) -> str:
    """A share as people read it."""
    return f"{value:.0%}" if value >= 0.01 else "less than 1%"


def tokens_of(store: Store, text: str) -> list[int]:
    """Distinct tokens of a text, whose first word is taken for one with a space before it, as most are."""
    return list(dict.fromkeys(store.vocabulary.split(f" {text.strip()}")))[:FEW_TOKENS]
