"""Reads of the whole store that explainers, scorers and concepts need: counts of firings, negatives, random windows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, UInt

from feature_store.indexing.codes import starts_from
from feature_store.records import Bigrams, FiringCount, TokenCount, TokenFirings, WordsAround
from feature_store.store import Store


def token_firings(store: Store, kind: str) -> TokenFirings:
    """Strong firings by token, one kind ("current", "next" or "previous") of every feature."""
    cursor = store.cursor()
    columns = cursor.execute(
        "select feature, token, n_explain, n_test from feature_token where kind = ? order by all", [kind]
    ).fetchnumpy()
    features, *others = map(np.asarray, columns.values())
    return TokenFirings(_starts(store, features), *others)


def _starts(store: Store, features: UInt[np.ndarray, " rows"]) -> Int[np.ndarray, " features_and_one"]:
    """Where the rows of every feature begin, in rows sorted by feature."""
    return starts_from(np.bincount(features, minlength=store.n_features))


def negatives(store: Store) -> list[bytes]:
    """Records of the hard negatives of every feature, by feature."""
    cursor = store.cursor()
    return [row[0] for row in cursor.execute("select negatives from context_pack order by feature").fetchall()]


def counted_places(store: Store) -> tuple[UInt[np.ndarray, "d_sae 2 positions"], UInt[np.ndarray, "d_sae 2 formats"]]:
    """Strong firings by position [d_sae, 2, positions] and format [d_sae, 2, formats], in (explain, test) documents."""
    cursor = store.cursor()
    rows = cursor.execute("select positions, formats from feature order by feature").fetchall()
    positions, formats = (np.frombuffer(b"".join(column), "<u4") for column in zip(*rows, strict=True))
    return positions.reshape(len(rows), 2, -1), formats.reshape(len(rows), 2, -1)


def lookups(store: Store) -> Float[np.ndarray, "d_sae groups 5"]:
    """Sums [d_sae, groups, 5] behind the token-lookup correlation (feature_store.indexing.statistics)."""
    cursor = store.cursor()
    rows = cursor.execute("select lookup from feature order by feature").fetchall()
    return np.frombuffer(b"".join(r[0] for r in rows), "<f8").reshape(len(rows), -1, 5)


def bigrams(store: Store) -> Bigrams:
    """Strong firings by pair of tokens, of every feature, the most frequent pair first."""
    query = "select * from feature_bigram order by feature, n_explain desc, first, second"
    features, *columns = map(np.asarray, store.cursor().execute(query).fetchnumpy().values())
    return Bigrams(_starts(store, features), np.stack(columns, axis=1))


def words_around(store: Store) -> dict[int, WordsAround]:
    """Words around the strong firings of every feature that has any."""
    cursor = store.cursor()
    rows = cursor.execute("select feature, words, word_hits, word_covered from feature where words != ''").fetchall()
    counts = lambda blob: np.frombuffer(blob, "<u4").reshape(2, -1)  # noqa: E731
    return {f: WordsAround(words.split("\n"), counts(hits), counts(covered)) for f, words, hits, covered in rows}


def activation_mass(store: Store) -> dict[int, list[int]]:
    """The tokens that hold most of each feature's activation in explain documents, the largest share first."""
    cursor = store.cursor()
    rows = cursor.execute("select feature, mass_tokens, mass_shares from feature").fetchall()
    columns = ((f, np.frombuffer(tokens, "<u4"), np.frombuffer(shares, "<f4")) for f, tokens, shares in rows)
    return {f: tokens[shares > 0].tolist() for f, tokens, shares in columns}


def firing_counts(store: Store) -> list[FiringCount]:
    """How often every feature fires strongly, by feature."""
    cursor = store.cursor()
    rows = cursor.execute(
        "select feature, n_strong, n_strong_test, n_documents_strong_test from feature order by feature"
    ).fetchall()
    return [FiringCount(*row) for row in rows]


def token_counts(store: Store) -> list[TokenCount]:
    """How often every token occurs, by token."""
    cursor = store.cursor()
    rows = cursor.execute("select token, n_explain, n_test from token order by token").fetchall()
    return [TokenCount(*row) for row in rows]


def promoted_tokens(store: Store) -> dict[int, list[int]]:
    """Tokens that every feature promotes, strongest first."""
    cursor = store.cursor()
    rows = cursor.execute("select feature, promoted_tokens from feature").fetchall()
    return {f: np.frombuffer(blob, "<u4").tolist() for f, blob in rows}


def documents_in_test_part(store: Store) -> set[int]:
    """Documents that explanations are scored on, and never written from."""
    cursor = store.cursor()
    return {r[0] for r in cursor.execute("select document from document where is_test").fetchall()}


def nearness(store: Store) -> list[list[tuple[Int[np.ndarray, " _n"], Float[np.ndarray, " _n"]]]]:
    """Per feature its nearest features with scores: [by cosine of decoder rows, by cosine of firing]."""
    cursor = store.cursor()
    rows = cursor.execute(
        "select neighbours, neighbour_cosines, coactive, coactive_scores from feature order by feature"
    ).fetchall()
    pairs = lambda ids, scores: (np.frombuffer(ids, "<u4").astype(np.int64), np.frombuffer(scores, "<f4"))  # noqa: E731
    return [[pairs(a, b), pairs(c, d)] for a, b, c, d in rows]


def document_features(store: Store) -> list[bytes]:
    """Strongest features of every document, as uint32."""
    cursor = store.cursor()
    return [row[0] for row in cursor.execute("select latents from document order by document").fetchall()]
