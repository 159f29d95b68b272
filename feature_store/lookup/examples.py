"""A few features for the first page, which somebody who sees features for the first time can read."""

from __future__ import annotations

import re

import numpy as np

from feature_store import queries
from feature_store.store import Store

QUOTED = re.compile("“([^”]*)”")
LETTERS = 4  # of a word that says something by itself
LARGEST_DENSITY = 0.01
LEAST_DOCUMENTS = 10
EXPLAINER = "token"
SAME_STEM = 4  # letters that words of one stem begin with


def examples(store: Store, n: int) -> list[int]:
    """Features whose labels name two or more tokens of different stems, above what random directions reach.

    Those with the most words come first, then by the lower end of the score; of one concept at most one is taken, as long
    as there are others. Fewer than `n` are filled up by the score.
    """
    columns = store.columns
    numbers = columns.numbers
    readable = columns.labelled & (numbers["density"] <= LARGEST_DENSITY) & (numbers["n_documents"] >= LEAST_DOCUMENTS)
    if EXPLAINER in columns.explainers:
        readable &= columns.explainer == columns.explainers.index(EXPLAINER)
    readable &= numbers["f2"] > (store.floor or 0.0)
    words = {f: _stems(columns.labels[f]) for f in np.flatnonzero(readable).tolist()}
    low = numbers["low"]
    order = sorted((f for f in words if words[f] >= 2), key=lambda f: (-words[f], -low[f], f))

    concept_of = {f: c.concept for c in queries.concepts(store) for f in c.features}  # the narrowest comes last
    first: dict[int, int] = {}
    for feature in order:
        first.setdefault(concept_of.get(feature, -1 - feature), feature)
    chosen = [*first.values(), *order, *columns.order("low", descending=True).tolist()]
    return list(dict.fromkeys(f for f in chosen if columns.labelled[f]))[:n]


def _stems(label: str) -> int:
    """How many different stems the words of a label have; 0 if one of them is no plain word."""
    words = [word.strip().lower() for word in QUOTED.findall(label)]
    if not all(word.isalpha() and len(word) >= LETTERS for word in words):
        return 0
    return len({word[:SAME_STEM] for word in words})
