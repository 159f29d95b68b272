"""Features that fire more on some texts than on others, as the counts of their tokens let one expect."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from feature_store.lookup.hits import Found, Hit, share_of, tokens_of
from feature_store.store import Store

MOST_TEXTS = 500  # of each side
LEAST_ERROR = 0.01  # of a share, so that a single text says something


def contrast(store: Store, text: str, against: str, limit: int) -> Found:
    """Features that fire on more texts of the first kind than of the second; every line is a text.

    The share of texts on which a feature fires is expected from their tokens: 1 - product of (1 - p) over the distinct
    tokens of a text, where p is the share of the token's occurrences on which it fires strongly. Features are ordered by
    the difference of both shares over its standard error.
    """
    first, second = (expected_firing(store, texts.strip().splitlines()) for texts in (text, against))
    scores = (first.mean - second.mean) / np.sqrt(first.error**2 + second.error**2 + LEAST_ERROR**2)
    order = np.argsort(-scores, kind="stable")[: int((scores > 0).sum())]
    hits = [
        Hit(
            f,
            "sentence",
            f"fires on {share_of(float(first.mean[f]))} of these, on {share_of(float(second.mean[f]))} of the others",
        )
        for f in order[:limit].tolist()
    ]
    note = "expected from counts of single tokens in the indexed text; the model was not run"
    return Found(hits, len(order), [note] if hits else [])


class Expected(NamedTuple):
    """Share of some texts on which every feature is expected to fire, and its standard error."""

    mean: Float[np.ndarray, " features"]
    error: Float[np.ndarray, " features"]


def expected_firing(store: Store, texts: list[str]) -> Expected:
    """See `contrast`."""
    tokens = [tokens_of(store, text) for text in texts if text.strip()][:MOST_TEXTS]
    wanted = sorted({token for ids in tokens for token in ids})
    columns = (
        store.cursor()
        .execute(
            """select token, feature, (h.n_explain + h.n_test) / (t.n_explain + t.n_test) as p
            from feature_token h join token t using (token)
            where kind = 'current' and token in (select unnest(?::uinteger[])) order by token, feature""",
            [wanted],
        )
        .fetchnumpy()
    )
    starts = np.searchsorted(columns["token"], [*wanted, 1 << 40])
    spans = {token: slice(*starts[n : n + 2]) for n, token in enumerate(wanted)}
    silent = np.log1p(-np.minimum(np.asarray(columns["p"]), 1 - 1e-6))
    sums = np.zeros((2, store.n_features))

    for ids in tokens:
        features = np.concatenate([columns["feature"][spans[token]] for token in ids] or [np.empty(0, int)])
        firing, place = np.unique(features, return_inverse=True)
        logs = np.concatenate([silent[spans[token]] for token in ids] or [np.empty(0)])
        shares = 1 - np.exp(np.bincount(place, logs, minlength=len(firing)))
        sums[:, firing] += shares, shares**2

    mean, square = sums / max(len(tokens), 1)
    return Expected(mean, np.sqrt(np.maximum(square - mean**2, 0) / max(len(tokens), 1)))
