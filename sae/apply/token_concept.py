"""Concepts by marked tokens: features and a threshold of single tokens, so that a text's score is that of its strongest token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from sae.apply.concept import LEAST_TEXTS, ConceptByExample, LinearRule, Method, linear_rule
from sae.apply.text_codes import TextCodes, TextReader
from sae.errors import ConfigError, DataError
from sae.interpret.intervals import balanced_accuracy, best_threshold, proportion
from sae.text.brought import MarkedText

MOST_COLUMNS = 2048  # features that are looked at: those that are strongest on marked tokens


class _Tokens(NamedTuple):
    """The tokens of some texts that a dictionary reads: codes [tokens, d_sae], which are marked, and the text of each."""

    codes: csr_array
    is_marked: Bool[np.ndarray, " tokens"]
    text: Int[np.ndarray, " tokens"]


class StrongestTokens(NamedTuple):
    """The largest score over a text's tokens, and the position of the token that has it (-1: one on which no feature fires)."""

    score: Float[np.ndarray, " texts"]
    position: Int[np.ndarray, " texts"]


def strongest_tokens(stored: Mapping[str, Any], codes: TextCodes) -> StrongestTokens:
    """The token of every text with the largest score of a concept, sum_i weight_i a_i of one token."""
    weight = np.zeros(codes.d_sae)
    weight[stored["features"]] = stored["weights"]
    place, inverse = np.unique(np.stack([codes.text, codes.position]), axis=1, return_inverse=True)
    sums = np.bincount(inverse.reshape(-1), weights=weight[codes.latent] * codes.act, minlength=place.shape[1])

    n_texts = len(codes.n_tokens)
    seen = np.bincount(place[0], minlength=n_texts)
    score = np.where(seen < codes.n_tokens, 0.0, -np.inf)  # a token on which nothing fires scores 0
    position = np.full(n_texts, -1)
    for number in np.argsort(sums, kind="stable"):
        text = place[0, number]
        if sums[number] > score[text]:
            score[text], position[text] = sums[number], place[1, number]
    return StrongestTokens(np.where(np.isinf(score), 0.0, score), position)


def learn_at_tokens(
    name: str, reader: TextReader, texts: list[MarkedText], method: Method = "difference", *, k: int = 16, seed: int = 0
) -> ConceptByExample:
    """A concept from texts in which the tokens that show it are marked; texts without a mark do not have it.

    Half of the texts choose the features and the threshold, by balanced accuracy over tokens; the other half tests. A text has the
    concept if one of its tokens is above the threshold. Helff et al. 2025 (arXiv 2510.18184) call such a threshold local.
    """
    if method == "tree":
        raise ConfigError("--method tree: concepts by marked tokens are learned by difference or top.")
    has_mark = np.array([bool(text.spans) for text in texts])
    if min(has_mark.sum(), (~has_mark).sum()) < LEAST_TEXTS:
        raise DataError(
            f"concept {name}: {has_mark.sum()} texts with a mark and {(~has_mark).sum()} without; at least {LEAST_TEXTS} of each are "
            "needed."
        )

    codes = reader.read_every([text.text for text in texts])
    tokens = _tokens(reader, codes, texts)
    rng = np.random.default_rng(seed)
    chooses = np.zeros(len(texts), bool)
    for side in (has_mark, ~has_mark):
        chooses[rng.permutation(np.flatnonzero(side))[: (side.sum() + 1) // 2]] = True
    inside = chooses[tokens.text]
    if not (tokens.is_marked & inside).any():
        raise DataError(f"concept {name}: the dictionary reads none of the marked tokens; mark later ones.")

    rule = linear_rule(*_classes(tokens, inside), method, k=k)
    score = tokens.codes @ _weights(reader, rule.features, rule.weights)
    threshold = best_threshold(score[inside & tokens.is_marked], score[inside & ~tokens.is_marked])
    local = _balanced(score > threshold, tokens.is_marked, ~inside)
    best = strongest_tokens(rule._asdict(), codes).score
    return _tested(
        name, method, rule, best, threshold=threshold, has_mark=has_mark, chooses=chooses, seed=seed, local=local
    )


def _tokens(reader: TextReader, codes: TextCodes, texts: list[MarkedText]) -> _Tokens:
    """A row per token of every text, from its first to its last that is read."""
    offset = int(reader.lm.prepend_bos)
    starts = np.cumsum([0, *(codes.last + 1)])
    is_marked = np.zeros(starts[-1], bool)
    for number, marked in enumerate(texts):
        spans = reader.lm.tokenizer(marked.text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        for place, (first, end) in enumerate(spans):
            position = place + offset
            if position <= codes.last[number]:
                is_marked[starts[number] + position] = any(first < stop and start < end for start, stop in marked.spans)
    rows = starts[codes.text] + codes.position
    matrix = csr_array((codes.act, (rows, codes.latent)), shape=(int(starts[-1]), codes.d_sae))
    return _Tokens(matrix, is_marked, np.repeat(np.arange(len(texts)), codes.last + 1))


class _Classes(NamedTuple):
    """Dense codes of marked and of other tokens, and the features that their columns are."""

    positive: Float[np.ndarray, "n columns"]
    negative: Float[np.ndarray, "m columns"]
    features: Int[np.ndarray, " columns"]


def _classes(tokens: _Tokens, inside: Bool[np.ndarray, " tokens"]) -> _Classes:
    marked, others = tokens.codes[inside & tokens.is_marked], tokens.codes[inside & ~tokens.is_marked]
    features = np.argsort(-np.asarray(marked.mean(axis=0)).reshape(-1), kind="stable")[:MOST_COLUMNS]
    return _Classes(marked[:, features].toarray(), others[:, features].toarray(), features)


def _weights(reader: TextReader, features: list[int], weights: list[float]) -> np.ndarray:
    out = np.zeros(reader.sae.d_sae)
    out[features] = weights
    return out


def _balanced(said: np.ndarray, true: np.ndarray, part: np.ndarray) -> float:
    return (float(said[part & true].mean()) + 1 - float(said[part & ~true].mean())) / 2


def _tested(
    name: str, method: Method, rule: LinearRule, score: np.ndarray, *, threshold: float, has_mark: np.ndarray,
    chooses: np.ndarray, seed: int, local: float,
) -> ConceptByExample:  # fmt: skip
    """The concept with what it does on the texts held out."""
    said, test = score > threshold, ~chooses
    hits, false = int(said[test & has_mark].sum()), int(said[test & ~has_mark].sum())
    n = [(int((chooses & side).sum()), int((test & side).sum())) for side in (has_mark, ~has_mark)]
    recall, silent = proportion(hits, n[0][1]), proportion(n[1][1] - false, n[1][1])
    return ConceptByExample(
        name, method, rule.features, rule.weights, threshold=threshold, n_positive=n[0], n_negative=n[1], precision=proportion(hits, hits + false),
        recall=recall, balanced_accuracy=balanced_accuracy(recall, silent), chosen_balanced_accuracy=_balanced(said, has_mark, chooses),
        seed=seed, scope="token", token_balanced_accuracy=local,
    )  # fmt: skip
