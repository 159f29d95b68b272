"""How long a repeated stretch must be before a head attends to what followed it: the test of long prefixes.

An induction head attends from a token to the one that followed its earlier copy. Some heads do so only if more than one token
before agrees (Kissane et al. 2024, arXiv 2406.17759, on heads 5.1 and 5.5 of GPT-2 small). `by_prefix_length` measures it on
random tokens, `corruption` on real text, where the token before the earlier copy is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Integer

from sae.apply.heads.attribution import PER_PASS, traced_attention
from sae.model.language_model import LanguageModel

LONGEST = 9  # tokens of a repeated stretch
BEFORE, BETWEEN = 16, 24  # random tokens before the first copy and between both
STRONG = 0.3  # attention from which on a head counts as attending


class Prefixed(NamedTuple):
    """Contexts in which a stretch occurs twice: ids [n, length], and the place of the token that followed the first copy."""

    ids: Int[np.ndarray, "n length"]
    target: int


def repeated(vocabulary: Int[np.ndarray, " tokens"], length: int, n: int, seed: int) -> Prefixed:
    """`n` contexts of random tokens that end with a stretch of `length` tokens, which another token followed before."""
    rng = np.random.default_rng([seed, length])
    # No token occurs twice but those of the stretch, so that nothing shorter can be a copy of it.
    rows = np.stack([rng.choice(vocabulary, BEFORE + length + 1 + BETWEEN, replace=False) for _ in range(n)])
    stretch = rows[:, BEFORE : BEFORE + length]
    return Prefixed(np.concatenate([rows, stretch], axis=1), BEFORE + length)


@torch.no_grad()
def by_prefix_length(
    lm: LanguageModel, layer: int, *, n: int, seed: int = 0, step: Callable[[], None] = lambda: None
) -> Float[np.ndarray, "lengths heads"]:
    """Mean attention of every head from the last token of a stretch to what followed its first copy, by its length 1 to 9."""
    special = set(lm.special_ids)
    vocabulary = np.array([i for i in lm.scored_ids.tolist() if i not in special])
    means = []
    for length in range(1, LONGEST + 1):
        prefixed = repeated(vocabulary, length, n, seed)
        sums: list[torch.Tensor] = []
        for start in range(0, n, PER_PASS):
            ids = _begun(lm, prefixed.ids[start : start + PER_PASS])
            pattern = traced_attention(lm, layer, torch.from_numpy(ids)).pattern
            sums.append(pattern[:, :, -1, prefixed.target + ids.shape[1] - prefixed.ids.shape[1]])
        means.append(torch.cat(sums).double().mean(0).cpu().numpy())
        step()
    return np.stack(means)


def _begun(lm: LanguageModel, ids: Int[np.ndarray, "n length"]) -> Int[np.ndarray, "n longer"]:
    """Contexts with the token that the model wants at their beginning."""
    if not lm.prepend_bos:
        return ids.astype(np.int64)
    return np.pad(ids.astype(np.int64), ((0, 0), (1, 0)), constant_values=lm.tokenizer.bos_token_id)


class Corruption(NamedTuple):
    """Attention of one head from tokens to what followed their earlier copy, where at least one more token before agrees: as the
    text is, with the token before the earlier copy replaced, and with another token replaced, [places] each.
    """

    head: int
    text: Float[np.ndarray, " places"]
    corrupt: Float[np.ndarray, " places"]
    control: Float[np.ndarray, " places"]


@torch.no_grad()
def corruption(
    lm: LanguageModel,
    layer: int,
    contexts: Iterable[Integer[np.ndarray, " length"]],
    *,
    head: int,
    most: int = 200,
    seed: int = 0,
) -> Corruption:
    """What the earlier copy's own predecessor is worth to a head on real text: up to `most` places where it attends strongly."""
    rng = np.random.default_rng(seed)
    places: list[_Place] = []
    contexts = iter(contexts)
    while len(places) < most and (rows := [row.astype(np.int64) for row in islice(contexts, PER_PASS)]):
        pattern = traced_attention(lm, layer, torch.from_numpy(np.stack(rows))).pattern[:, head].float().cpu().numpy()
        tried = (_tried(row, attention, rng) for row, attention in zip(rows, pattern, strict=True))
        places += [place for place in tried if place is not None]

    columns: list[list[float]] = [[], []]
    for place in places[:most]:
        patterns = traced_attention(lm, layer, torch.from_numpy(place.changed)).pattern
        for column, value in zip(columns, patterns[:, head, place.target, place.source].tolist(), strict=True):
            column.append(float(value))
    text = np.array([place.attention for place in places[:most]])
    return Corruption(head, text, *(np.array(column) for column in columns))


class _Place(NamedTuple):
    """A place of strong attention from `target` to `source`, and its context with the token before the earlier copy replaced, and
    with another token replaced, [2, length].
    """

    target: int
    source: int
    attention: float
    changed: Int[np.ndarray, "2 length"]


def _tried(row: Int[np.ndarray, " length"], attention: np.ndarray, rng: np.random.Generator) -> _Place | None:
    """One place of a context, drawn among those that it has."""
    places = _copies(row, attention)
    if not places:
        return None
    target, source = places[int(rng.integers(len(places)))]
    others = [p for p in range(1, target - 1) if abs(p - source) > 2]
    if not others:
        return None
    changed = np.stack([row, row])
    changed[0, source - 2] = rng.choice(row[row != row[source - 2]])
    changed[1, int(rng.choice(others))] = changed[0, source - 2]
    return _Place(target, source, float(attention[target, source]), changed)


def _copies(row: Int[np.ndarray, " length"], attention: Float[np.ndarray, "length length"]) -> list[tuple[int, int]]:
    """Places (t, s) of strong attention from t to s where the two tokens before s are those up to t."""
    copies = []
    for target, source in zip(*np.nonzero(attention > STRONG), strict=True):
        if 2 <= source <= target - 2 and (row[source - 2 : source] == row[target - 1 : target + 1]).all():
            copies.append((int(target), int(source)))
    return copies
