"""Concepts: features grouped by direction, firing and documents into two levels, each named after its members' labels."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict

import numpy as np
from scipy.sparse import csr_matrix

from feature_store import evidence_queries
from feature_store.records import Concept
from feature_store.store import Store
from sae.interpret.explainers.keyphrase import log_odds
from sae.interpret.scorers import Label

WORDS = 3
SMALLEST = 2
SMALLEST_SPLIT = 12


def affinity(store: Store, alive: list[int]) -> csr_matrix:
    """Symmetric [d_sae, d_sae]: the mean of decoder cosine, cosine of firing, and cosine of the documents fired in.

    Only pairs that are among each other's nearest by decoder or by firing have an entry; negative cosines count as 0.
    """
    nearest = evidence_queries.nearness(store)
    d_sae = len(nearest)
    rows, columns = np.empty(0, np.int64), np.empty(0, np.int64)
    weights = np.empty(0)
    live = np.zeros(d_sae, bool)
    live[alive] = True
    parts = [(np.full(len(others), f), others, scores) for f, pairs in enumerate(nearest) for others, scores in pairs]
    if parts:
        rows, columns, weights = (np.concatenate(column) for column in zip(*parts, strict=True))

    is_edge = live[rows] & live[columns] & (rows != columns) & (weights > 0)
    edges = csr_matrix((weights[is_edge], (rows[is_edge], columns[is_edge])), shape=(d_sae, d_sae))  # both kinds add up
    edges = edges.maximum(edges.T).tocoo()
    shared = _shared_documents(store, d_sae, edges.row, edges.col)

    return csr_matrix(((edges.data + shared) / 3, (edges.row, edges.col)), shape=(d_sae, d_sae))


def _shared_documents(store: Store, d_sae: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    documents = [np.frombuffer(blob, "<u4") for blob in evidence_queries.document_features(store)]
    owner = np.repeat(np.arange(len(documents)), [len(d) for d in documents])
    held = np.concatenate(documents) if documents else np.empty(0, np.int64)
    incidence = csr_matrix((np.ones(len(held)), (held, owner)), shape=(d_sae, max(len(documents), 1)))
    norms = np.sqrt(np.asarray(incidence.sum(1)).ravel())
    n_shared_documents = (
        np.asarray(incidence[rows].multiply(incidence[columns]).sum(1)).ravel() if len(rows) else np.empty(0)
    )
    return n_shared_documents / np.maximum(norms[rows] * norms[columns], 1)


def terms(label: Label) -> set[str]:
    """Strings of a label's rule; the label itself if its rule is not about strings (positions, formats)."""
    strings = {part for item in label.rule if isinstance(item, str) for part in item.split("\0")}
    return strings or {label.text}


def concepts_of(store: Store, labels: dict[int, Label], alive: list[int], seed: int) -> list[Concept]:
    """Two levels of concepts over the live features, largest first.

    Both levels are communities of the affinity by Louvain's method (Blondel et al. 2008); the second level splits each
    community of the first. Communities of one feature are left out, so not every feature is in a concept.
    """
    weights = affinity(store, alive)
    words = {f: terms(labels[f]) if f in labels else set() for f in alive}
    background = Counter(w for found in words.values() for w in found)
    concepts: list[Concept] = []

    def add(members: list[int], parent: int | None) -> int:
        name = _name(members, words, background)
        covered = [f for f in members if not words[f].isdisjoint(name)]
        block = weights[members]
        total = float(block.sum())
        purity = float(block[:, members].sum()) / total if total > 0 else 0.0
        text = ", ".join(name) or "without a name"
        concepts.append(
            Concept(len(concepts), parent, text, len(covered) / len(members), purity=purity, features=members)
        )
        return len(concepts) - 1

    for members in _communities(weights, alive, seed):
        whole = add(members, None)
        if len(members) < SMALLEST_SPLIT:
            continue
        parts = _communities(weights, members, seed)
        for part in parts if len(parts) > 1 else []:
            add(part, whole)

    return concepts


def _communities(weights: csr_matrix, among: list[int], seed: int) -> list[list[int]]:
    """The communities of at least `SMALLEST` of some features, the largest first."""
    from sknetwork.clustering import Louvain

    members = np.array(sorted(among))
    block = weights[members][:, members]
    if not block.nnz:
        return []
    community = Louvain(shuffle_nodes=True, random_state=seed).fit_predict(block)
    large = [members[community == number].tolist() for number in np.unique(community)]
    return sorted((c for c in large if len(c) >= SMALLEST), key=lambda members: (-len(members), members[0]))


def _name(members: list[int], words: dict[int, set[str]], background: Counter[str]) -> list[str]:
    """The words that occur in the members' labels more often than in other labels (log-odds), three at most."""
    inside = Counter(w for f in members for w in words[f])
    outside = Counter({w: background[w] - n for w, n in inside.items()})
    scores = log_odds(inside, len(members), outside, max(len(words) - len(members), 1))
    return sorted(scores, key=lambda w: (-scores[w], w))[:WORDS]


def as_json(concepts: list[Concept], n_alive: int) -> str:
    """concepts.json: the two levels, and the share of live features that are in a concept."""
    grouped = {f for c in concepts if c.parent is None for f in c.features}
    facts = {"features_alive": n_alive, "features_grouped": len(grouped)}
    return json.dumps(facts | {"concepts": [asdict(c) for c in concepts]}, indent=1)
