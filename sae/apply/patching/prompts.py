"""Pairs of prompts that differ in what a prediction hangs on: read from a file, or made of names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from sae.errors import ConfigError, DataError
from sae.model.language_model import LanguageModel
from sae.text.brought import lines

LONGEST = 256  # tokens of a prompt: every position of every component is patched
KEYS = ("clean", "corrupt", "answer", "wrong")
NAMES = (
    "Mary", "John", "Tom", "Anna", "Paul", "Kate", "James", "Sarah", "David", "Laura", "Mark", "Emma", "Peter", "Alice",
    "Robert", "Julia", "Henry", "Grace", "George", "Lucy",
)  # fmt: skip
PLACES = ("store", "park", "school", "station", "garden", "office")
THINGS = ("drink", "book", "ring", "ball", "letter", "key")


class PromptPair(NamedTuple):
    """Two prompts of equal length in tokens; the clean one is followed by `answer`, the corrupt one rather by `wrong`."""

    clean: str
    corrupt: str
    answer: str
    wrong: str


class PairIds(NamedTuple):
    """Token ids of a pair; both prompts are equal before the position `first`."""

    clean: Int[np.ndarray, " length"]
    corrupt: Int[np.ndarray, " length"]
    answer: int
    wrong: int
    first: int


def read_pairs(path: Path) -> list[PromptPair]:
    """The pairs of a JSON-lines file; raises `DataError` naming the line."""
    pairs = []
    for number, line in enumerate(lines(path), 1):
        try:
            row = json.loads(line)
            values = [row[key] for key in KEYS]
            if not all(isinstance(value, str) and value for value in values):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f'{path}: line {number} is not an object with texts "clean", "corrupt", "answer", "wrong".'
            ) from None
        pairs.append(PromptPair(*values))
    if not pairs:
        raise DataError(f"{path}: holds no pair.")
    return pairs


def indirect_objects(lm: LanguageModel, n: int, seed: int) -> list[PromptPair]:
    """Pairs about who is given something: "When Mary and John went to the store, John gave a drink to" Mary.

    In the corrupt prompt the other one gives. Names are single tokens of the model (Wang et al. 2022, arXiv 2211.00593).
    """
    names = [name for name in NAMES if len(lm.tokenizer(" " + name, add_special_tokens=False).input_ids) == 1]
    if len(names) < 2:
        raise ConfigError("this model's tokenizer has no names as single tokens; give --pairs FILE.")

    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(n):
        first, second = rng.choice(names, 2, replace=False)
        place, thing = rng.choice(PLACES), rng.choice(THINGS)
        start = f"When {first} and {second} went to the {place},"
        end = f"gave a {thing} to"
        pairs.append(PromptPair(f"{start} {second} {end}", f"{start} {first} {end}", f" {first}", f" {second}"))
    return pairs


def ids_of(lm: LanguageModel, pair: PromptPair) -> PairIds:
    """The token ids of a pair; raises `DataError` if its prompts cannot be laid over each other."""
    clean, corrupt = (np.array(lm.token_ids(text, LONGEST + 1)) for text in (pair.clean, pair.corrupt))
    if len(clean) > LONGEST:
        raise DataError(f"prompt {pair.clean[:60]!r}: has more than {LONGEST} tokens; give shorter ones.")
    if len(clean) != len(corrupt):
        raise DataError(
            f"prompts {pair.clean[:60]!r} and {pair.corrupt[:60]!r} have {len(clean)} and {len(corrupt)} tokens; a pair needs "
            "as many of each, so that one can be laid over the other."
        )
    if (clean == corrupt).all():
        raise DataError(f"prompt {pair.clean[:60]!r}: both prompts of the pair are the same.")
    answer, wrong = (lm.tokenizer(text, add_special_tokens=False).input_ids[0] for text in (pair.answer, pair.wrong))
    if answer == wrong:
        raise DataError(f"answers {pair.answer!r} and {pair.wrong!r} begin with the same token; give ones that do not.")
    return PairIds(clean, corrupt, answer, wrong, first=int(np.flatnonzero(clean != corrupt)[0]))
