"""Finds features: by id, words of labels and explanations, tokens they fire on or promote, and whole sentences."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable
from math import log
from typing import Literal

import numpy as np

from feature_store import queries
from feature_store.lookup.hits import NOTHING, Found, Hit, share_of, tokens_of
from feature_store.records import ActiveFeature
from feature_store.schema import LISTED
from feature_store.store import Store

SearchKind = Literal["all", "label", "explanation", "current", "next", "previous", "promoted", "sentence", "like", "id"]
WORD = re.compile(r"\w+", re.UNICODE)
SHORTEST_GUESS = 4  # letters of a word that may be a slip
CLOSE = 0.75  # likeness of two spellings
MOST_RANKED = 20_000  # labels that are looked at one by one
EACH = 200  # hits of one kind that are looked at
SENTENCE_WORDS = 3
DOCUMENTS = 10  # of a feature, in which others may be strong too
LEAST_SHARED = 0.3
BEST = 12  # of every kind that come first when all kinds are asked


def search(store: Store, text: str, kind: SearchKind, limit: int) -> Found:
    """The features that a text finds, at most `limit`, each once."""
    text = text.strip()
    result = KINDS[kind](store, text)
    once: dict[int, Hit] = {}
    for hit in result.hits:
        once.setdefault(hit.feature, hit)
    notes = result.notes or ([] if once or not text else [_what_is_known(store, text)])
    return Found(list(once.values())[:limit], max(len(once), result.total), notes)


def _everywhere(store: Store, text: str) -> Found:
    """The best of every kind: by id, label, explanation, token and promoted token; several words also as a sentence."""
    parts = [by_id(store, text), by_label(store, text), by_explanation(store, text)]
    n_words = len(WORD.findall(text))
    if n_words < SENTENCE_WORDS and not any(part.hits for part in parts):
        parts.append(_by_nearest_words(store, text))
    parts += [by_token(store, text, "current"), by_promotion(store, text)]
    if n_words >= SENTENCE_WORDS:
        parts.append(by_sentence(store, text))

    best = [hit for part in parts for hit in part.hits[:BEST]]
    rest = [hit for part in parts for hit in part.hits[BEST:]]
    n = len({hit.feature for hit in (*best, *rest)})
    return Found(best + rest, n, [note for part in parts for note in part.notes])


def by_id(store: Store, text: str) -> Found:
    """The feature of that number."""
    bare = text.removeprefix("#")
    if bare.isascii() and bare.isdigit() and len(bare) < 10 and int(bare) < store.columns.n:
        return Found([Hit(int(bare), "id", "its number")], 1, [])
    return NOTHING


def _by_nearest_words(store: Store, text: str) -> Found:
    """By label or explanation, each word that no label holds taken for the nearest that one does."""
    spelled = corrected(store, text)
    if spelled is None:
        return NOTHING
    hits = by_label(store, spelled).hits + by_explanation(store, spelled).hits
    return Found(hits, len(hits), [f"no label or explanation holds “{text}”; shown are those with “{spelled}”"])


def by_label(store: Store, text: str) -> Found:
    """Features whose label holds every word, whatever the case: as whole words first, then by the held-out score."""
    columns = store.columns
    matches: np.ndarray | None = None
    for word in text.split():
        having = columns.having(word)
        matches = having if matches is None else np.intersect1d(matches, having, assume_unique=True)
    if matches is None:
        return NOTHING
    order = matches[np.argsort(-columns.numbers["low"][matches], kind="stable")].tolist()
    if len(order) <= MOST_RANKED:
        order = _whole_words_first(text, order, columns.lower_labels.__getitem__)
    return Found([Hit(feature, "label", "its label") for feature in order[:EACH]], len(order), [])


def by_explanation(store: Store, text: str) -> Found:
    """Features of which any explanation holds every word, in the order of `by_label`."""
    words = text.lower().split()
    if not words:
        return NOTHING
    where = " and ".join("contains(lower(text), ?)" for _ in words)
    rows = (
        store.cursor()
        .execute(f"select feature, explainer, text from explanation where {where} order by feature, id", words)
        .fetchall()
    )
    why: dict[int, str] = {}
    for feature, explainer, said in rows:
        why.setdefault(feature, f"{explainer.replace('_', ' ')}: {said}")
    low = np.nan_to_num(store.columns.numbers["low"], nan=-1.0)
    order = sorted(why, key=lambda feature: (-low[feature], feature))
    order = _whole_words_first(text, order, lambda feature: why[feature].lower())
    return Found([Hit(feature, "explanation", why[feature]) for feature in order[:EACH]], len(order), [])


def _whole_words_first(text: str, order: list[int], said: Callable[[int], str]) -> list[int]:
    """The features in their order, those first of which the text holds every word as a word of its own."""
    words = [re.compile(rf"(?<!\w){re.escape(word)}(?!\w)") for word in text.lower().split()]
    return sorted(order, key=lambda feature: not all(word.search(said(feature)) for word in words))


def by_token(store: Store, text: str, kind: Literal["current", "next", "previous"]) -> Found:
    """Features that fire strongly on the token, before it, or after it."""
    place = {"current": "on", "next": "before", "previous": "after"}[kind]
    hits = [
        Hit(
            hit.feature,
            kind,
            f"fires {place} {share_of(hit.of_tokens)} of “{text}”, which is {share_of(hit.of_firings)} of its strong firings",
            hit.times,
        )
        for hit in queries.features_of_token(store, store.vocabulary.like(text), kind, EACH)
    ]
    return Found(hits, len(hits), [])


def by_promotion(store: Store, text: str) -> Found:
    """Features whose direction raises the token most over their other tokens, or whose published page lists it."""
    rows = queries.features_promoting(store, store.vocabulary.like(text), EACH)
    shown = store.vocabulary.shown
    is_listed = store.meta.get("promotion") == LISTED
    unit = "by what its page says" if is_listed else "deviations above its other tokens"
    hits = [Hit(f, "promoted", f"promotes “{shown(token)}”, {height:.1f} {unit}") for f, token, height in rows]
    return Found(hits, len(hits), [])


def by_sentence(store: Store, text: str) -> Found:
    """Features that usually fire on the tokens of a text, by what the store counted; the model is not run.

    A feature's weight is sum over the text's distinct tokens of p log(p / q), where p is the share of the token's
    occurrences on which it fires strongly and q the share of all tokens.
    """
    tokens = tokens_of(store, text)
    weights, best = sentence_weights(store, tokens)
    hits = _sentence_hits(store, weights, best)
    note = "from counts of single tokens in the indexed text; the model was not run on this sentence"
    return Found(hits[:EACH], len(hits), [note] if hits else [])


def _sentence_hits(store: Store, weights: dict[int, float], best: dict[int, tuple[float, int]]) -> list[Hit]:
    """The features by falling weight, each with the token of which it fires on the largest share."""
    text_of = store.vocabulary.shown
    return [
        Hit(f, "sentence", f"fires on {best[f][0]:.0%} of “{text_of(best[f][1]).strip()}” in the indexed text")
        for f in sorted(weights, key=lambda feature: (-weights[feature], feature))
    ]


def sentence_weights(store: Store, tokens: list[int]) -> tuple[dict[int, float], dict[int, tuple[float, int]]]:
    """Weight of every feature that fires on some of the tokens; and its largest p with the token."""
    if not tokens:
        return {}, {}
    marks = ", ".join("?" * len(tokens))
    rows = (
        store.cursor()
        .execute(
            f"""select feature, token, (h.n_explain + h.n_test) / (t.n_explain + t.n_test) as p, f.n_strong
            from feature_token h join token t using (token) join feature f using (feature)
            where kind = 'current' and token in ({marks}) order by feature, token""",
            tokens,
        )
        .fetchall()
    )
    n_tokens = store.meta["n_tokens"]
    weights: dict[int, float] = {}
    best: dict[int, tuple[float, int]] = {}
    for feature, token, p, n_strong in rows:
        gain = p * log(max(p, 1e-12) / (n_strong / n_tokens))
        if gain > 0:
            weights[feature] = weights.get(feature, 0.0) + gain
            best[feature] = max(best.get(feature, (0.0, token)), (p, token))
    return weights, best


def like(store: Store, text: str) -> Found:
    """Features like that of the number `text`: near it by decoder row, firing together with it, or in its documents.

    Their order is by the sum of both cosines and of the share of its documents that they are strong in, less the share
    of all documents that they fire in.
    """
    if not by_id(store, text).hits:
        return Found([], 0, ["the number of a feature is wanted"])
    number = int(text.removeprefix("#"))
    [feature] = queries.features(store, number, number + 1)
    weights: dict[int, float] = {}
    why: dict[int, list[str]] = {}
    for name, pairs in (("decoder", feature.neighbours), ("firing", feature.coactive)):
        for other, cosine in pairs:
            weights[other] = weights.get(other, 0.0) + cosine
            why.setdefault(other, []).append(f"cosine of {name} {cosine:.2f}")

    documents = queries.documents_of_features(store, number).get(number, [])[:DOCUMENTS]
    shared = Counter(active.feature for d, _, _ in documents for active in _features_in(store, d))
    for other, n in shared.items():
        above = n / len(documents) - store.columns.numbers["n_documents"][other] / len(store.document_names)
        if other != number and above > LEAST_SHARED:
            weights[other] = weights.get(other, 0.0) + above
            why.setdefault(other, []).append(f"strong in {n} of its {len(documents)} documents")

    order = sorted(weights, key=lambda other: (-weights[other], other))
    return Found([Hit(other, "like", ", ".join(why[other])) for other in order], len(order), [])


def _features_in(store: Store, document: int) -> list[ActiveFeature]:
    record = queries.document(store, document)
    return record.features if record else []


def corrected(store: Store, text: str) -> str | None:
    """The text with each unknown word replaced by the nearest word of the labels; None if one has none."""
    known = store.columns.label_words
    words = []
    for word in text.lower().split():
        near = (
            [word] if word in known or len(word) < SHORTEST_GUESS else difflib.get_close_matches(word, known, 1, CLOSE)
        )
        if not near:
            return None
        words.append(near[0])
    spelled = " ".join(words)
    return spelled if spelled != text.lower() else None


def _what_is_known(store: Store, text: str) -> str:
    """How often a text that found nothing occurs, or which tokens are spelled like it."""
    tokens = store.vocabulary.like(text)
    if not tokens:
        near = difflib.get_close_matches(text.lower(), store.vocabulary.by_text, 3, CLOSE)
        hint = f"; tokens spelled like it: {', '.join(near)}" if near else ""
        return f"no label or explanation holds “{text}”, and it is no single token of this model{hint}"
    n = sum(queries.token_occurrences(store, tokens).values())
    return f"the token “{text}” occurs {n:,} times in the indexed text; no feature was found for it"


KINDS: dict[SearchKind, Callable[[Store, str], Found]] = {
    "all": _everywhere,
    "label": by_label,
    "explanation": by_explanation,
    "current": lambda store, text: by_token(store, text, "current"),
    "next": lambda store, text: by_token(store, text, "next"),
    "previous": lambda store, text: by_token(store, text, "previous"),
    "promoted": by_promotion,
    "sentence": by_sentence,
    "like": like,
    "id": by_id,
}
