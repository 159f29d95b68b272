"""What the API says of a feature and of its contexts, as plain values; rendered at publication, or when it is asked for."""

from __future__ import annotations

from functools import cached_property
from math import floor, log10
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from feature_store import queries
from feature_store.indexing.formats import FORMATS, POSITION_EDGES
from feature_store.packing import FIRES, GROUPS, RANDOM, UNREADABLE, Pack, dense_windows
from feature_store.records import Concept, Feature, FeatureRow, JudgedWindow
from feature_store.store import Store

DOCUMENTS = 10  # of a feature that its page names
DIGITS = 5  # of an activation: it is stored as a share of the maximum in 65,535 steps
SHARE_DIGITS = 6


class MemberOf(NamedTuple):
    """A concept that holds a feature."""

    concept: int
    name: str


class Surroundings:
    """What pages of features say of other things: labels, documents and concepts, read once for all features, or for `only` one."""

    def __init__(self, store: Store, only: int | None = None):
        self.store, self._only = store, only

    @cached_property
    def documents(self) -> dict[int, list[tuple[int, float, float]]]:
        """Documents of every feature (`queries.documents_of_features`)."""
        return queries.documents_of_features(self.store, self._only)

    @cached_property
    def concepts(self) -> dict[int, list[MemberOf]]:
        """Concepts of every feature that is in any, the widest first."""
        by_feature: dict[int, list[MemberOf]] = {}
        for concept in queries.concepts(self.store):
            for feature in concept.features:
                by_feature.setdefault(feature, []).append(MemberOf(concept.concept, concept.name))
        return by_feature

    def label(self, feature: int) -> str | None:
        """The label of a feature."""
        return self.store.columns.label(feature)


def row_body(row: FeatureRow) -> dict[str, Any]:
    """`FeatureItem` of a row."""
    return dict(vars(row))


def feature_body(around: Surroundings, feature: Feature) -> dict[str, Any]:
    """`FeatureDetail` of a feature."""
    store, number = around.store, feature.row.feature

    def weights(pairs: list[tuple[int, float]]) -> list[dict[str, Any]]:
        return [{"token": t, "text": store.vocabulary.shown(t), "logit": v} for t, v in pairs]

    def others(pairs: list[tuple[int, float]]) -> list[dict[str, Any]]:
        return [{"feature": f, "cosine": c, "label": around.label(f)} for f, c in pairs]

    documents = around.documents.get(number, [])[:DOCUMENTS]
    names = store.document_names
    return row_body(feature.row) | {
        "histogram": feature.histogram,
        "histogram_log2_edges": feature.histogram_log2_edges,
        "promoted": weights(feature.promoted),
        "suppressed": weights(feature.suppressed),
        "neighbours": others(feature.neighbours),
        "coactive": others(feature.coactive),
        "positions": [
            {"first": first, "firings": n} for first, n in zip(POSITION_EDGES.tolist(), feature.positions, strict=True) if n
        ],
        "formats": [{"format": name, "firings": n} for name, n in zip(FORMATS, feature.formats, strict=True) if n],
        "documents": [{"document": d, "name": names.get(d, ""), "mean_act": mean, "max_act": most} for d, mean, most in documents],
        "concepts": [member._asdict() for member in around.concepts.get(number, [])],
        "explanations": [
            {"explainer": e.explainer, "text": e.text, "chosen": e.chosen, "scores": [dict(vars(s)) for s in e.scores]}
            for e in feature.explanations
        ],
        "scores": [dict(vars(score)) for score in feature.scores],
        "floor": store.floor,
    }  # fmt: skip


def contexts_body(store: Store, feature: int, max_act: float, pack: Pack) -> dict[str, Any]:
    """`ContextList` of a feature's stored windows: the top ones, then the strata, as `queries.windows` has them."""
    items = _contexts(store, pack, decimals_of(max_act))
    numbers = dict.fromkeys(item["document"] for item in items)
    return {
        "feature": feature,
        "max_act": max_act,
        "documents": {str(number): store.document_names.get(number, "") for number in numbers},
        "items": items,
    }


def _contexts(store: Store, pack: Pack, decimals: int) -> list[dict[str, Any]]:
    """`ContextItem` of every window that is shown; all windows together become lists, which is most of the work."""
    columns = {name: pack.windows[name].tolist() for name in pack.windows.dtype.names or ()}
    ids, places, acts = pack.token_ids.tolist(), pack.act_places.tolist(), pack.act_values.tolist()
    rounded = np.round(pack.act_values.astype(np.float64), decimals).tolist()
    percentiles, inclusions = (
        np.round(pack.windows[name].astype(np.float64), SHARE_DIGITS).tolist() for name in ("percentile", "inclusion")
    )
    positions = _positions(store, columns)
    top, strata = [], []
    id_end, act_end = 0, 0

    for n, group in enumerate(columns["group"]):
        own_ids = slice(id_end, id_end := id_end + columns["length"][n])
        own_acts = slice(act_end, act_end := act_end + columns["n_acts"][n])
        if GROUPS[group] == "uniform":
            continue
        item = {
            "group": GROUPS[group],
            **{name: columns[name][n] for name in ("rank", "stratum", "document", "place", "peak", "copies")},
            "position": positions[n],
            "percentile": percentiles[n],
            "inclusion": inclusions[n],
            "token_ids": ids[own_ids],
            "texts": store.vocabulary.texts(ids[own_ids]),
            "places": places[own_acts],
            "acts": rounded[own_acts],
        }
        text = (columns["context"][n], *ids[own_ids])
        strength = dict(zip(places[own_acts], acts[own_acts], strict=True)).get(columns["peak"][n], 0.0)
        (top if GROUPS[group] == "top" else strata).append((item, text, strength))

    shown = {text for _, text, _ in top}
    top.sort(key=lambda entry: entry[0]["rank"])
    strata.sort(key=lambda entry: (-entry[0]["stratum"], -entry[2], entry[0]["rank"]))
    return [item for item, _, _ in top] + [item for item, text, _ in strata if text not in shown]


def _positions(store: Store, columns: dict[str, list[int]]) -> list[int]:
    """How many tokens of its document stand before the peak of every window; documents follow each other in the stream."""
    starts, length = store.document_starts, store.meta["ctx_len"]
    positions = []
    for document, context, place in zip(columns["document"], columns["context"], columns["place"], strict=True):
        start = int(starts[document])
        positions.append(max(start, context * length) - start + place)
    return positions


def judged_body(store: Store, feature: int) -> dict[str, Any]:
    """`JudgedList`: the windows that scorers read for a feature's explanations, and what they found."""
    rows = queries.judged(store, feature)
    wanted = {window.feature for *_, windows in rows for window in windows if window.feature != RANDOM}
    packs = {other: queries.packs(store, other, other + 1)[0][1] for other in wanted}
    texts = {other: dense_windows(pack) for other, pack in packs.items()}
    random = queries.random_windows(store) if any(w.feature == RANDOM for *_, ws in rows for w in ws) else []

    def shown(window: JudgedWindow) -> dict[str, Any]:
        if window.feature == RANDOM:
            drawn = random[window.number]
            ids, peak, document = drawn.token_ids, drawn.peak, drawn.document
        else:
            record = packs[window.feature].windows[window.number]
            ids, peak, document = texts[window.feature][window.number][0], int(record["peak"]), int(record["document"])
        acts = texts[feature][window.number][1] if window.feature == feature else np.zeros(len(ids))
        return {
            "fires": window.fires,
            "said": None if window.said == UNREADABLE else window.said == FIRES,
            "document": document,
            "peak": peak,
            "texts": store.vocabulary.texts(ids.tolist()),
            "places": np.flatnonzero(acts).tolist(),
            "acts": acts[acts > 0].astype(float).round(decimals_of(float(acts.max(initial=0)))).tolist(),
        }

    items = [
        {"scorer": scorer, "explainer": explainer, "text": text, "windows": [shown(w) for w in windows]}
        for scorer, explainer, text, windows in rows
    ]
    numbers = dict.fromkeys(window["document"] for item in items for window in item["windows"])
    names = {str(number): store.document_names.get(number, "") for number in numbers}
    return {"feature": feature, "documents": names, "items": items}


def decimals_of(max_act: float) -> int:
    """Decimals that show `DIGITS` digits of the largest activation."""
    return max(0, DIGITS - 1 - floor(log10(max_act))) if max_act > 0 else 0


def concept_body(around: Surroundings, concept: Concept) -> dict[str, Any]:
    """`ConceptItem` of a concept."""
    return dict(vars(concept)) | {"features": [{"feature": f, "label": around.label(f)} for f in concept.features]}


def densities(store: Store, edges: Float[np.ndarray, " edges"]) -> list[int]:
    """How many features have a density in each range of `edges` (decimal logarithms)."""
    values = store.columns.numbers["density"]
    return np.histogram(np.log10(values[values > 0]), edges)[0].tolist()
