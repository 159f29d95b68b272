"""Features, contexts and explanations as Neuronpedia keeps them: its routes and its files are made of these rows.

Keys are spelled as Neuronpedia spells them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from feature_store.packing import N_BINS, N_STRATA

BINS = N_BINS // N_STRATA  # of a stratum


class Place(NamedTuple):
    """What Neuronpedia calls a dictionary: a source of a model; `hook_name` is in the words of who reads it."""

    model: str
    source: str
    hook_name: str

    def of(self, feature: int) -> dict[str, str]:
        """What tells a feature of the dictionary."""
        return {"modelId": self.model, "layer": self.source, "index": str(feature)}


def feature_row(place: Place, detail: dict[str, Any]) -> dict[str, Any]:
    """A row of its table Neuron, from `FeatureDetail`."""
    edges = detail["histogram_log2_edges"]
    return {
        **place.of(detail["feature"]),
        "hookName": place.hook_name,
        "maxActApprox": detail["max_act"],
        "frac_nonzero": detail["density"],
        "hasVector": False,
        "vector": [],
        "pos_str": [token["text"] for token in detail["promoted"]],
        "pos_values": [token["logit"] for token in detail["promoted"]],
        "neg_str": [token["text"] for token in detail["suppressed"]],
        "neg_values": [token["logit"] for token in detail["suppressed"]],
        "topkCosSimIndices": [other["feature"] for other in detail["neighbours"]],
        "topkCosSimValues": [other["cosine"] for other in detail["neighbours"]],
        "freq_hist_data_bar_heights": detail["histogram"],
        "freq_hist_data_bar_values": [2 ** ((a + b) / 2) for a, b in pairwise(edges)],
    }


def activation_rows(place: Place, detail: dict[str, Any], contexts: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of its table Activation, from `ContextList`: the top contexts, then the strata with their bounds.

    binContains is the share of the feature's firings that lie in the stratum; top contexts have no bin.
    """
    bins = _bins_of(detail)
    rows = []
    for item in contexts["items"]:
        values = np.zeros(len(item["texts"]))
        values[item["places"]] = item["acts"]
        low, high, share = bins[item["stratum"]] if item["group"] == "stratum" else (None, None, None)
        rows.append({
            "id": f"{place.source}-{detail['feature']}-{item['group']}-{item['stratum']}-{item['rank']}",
            **place.of(detail["feature"]),
            "tokens": item["texts"],
            "values": values.tolist(),
            "maxValue": float(values.max()),
            "maxValueTokenIndex": int(values.argmax()),
            "minValue": float(values.min()),
            "dataSource": contexts["documents"][str(item["document"])],
            "dataIndex": str(item["document"]),
            "binMin": low,
            "binMax": high,
            "binContains": share,
            "qualifyingTokenIndex": item["peak"],
        })  # fmt: skip
    return rows


def _bins_of(detail: dict[str, Any]) -> list[tuple[float, float, float]]:
    """(least, largest activation, share of the firings) of every stratum."""
    counts, edges = np.array(detail["histogram"]), np.exp2(detail["histogram_log2_edges"])
    shares = counts.reshape(N_STRATA, BINS).sum(1) / max(counts.sum(), 1)
    return list(zip(edges[:-1:BINS].tolist(), edges[BINS::BINS].tolist(), shares.tolist(), strict=True))


def explanation_rows(place: Place, detail: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of its table Explanation, from `FeatureDetail`, the label first."""
    return [
        {
            "id": f"{place.source}-{detail['feature']}-{number}",
            **place.of(detail["feature"]),
            "description": explanation["text"],
            "typeName": explanation["explainer"],
            "explanationModelName": None,
        }
        for number, explanation in enumerate(detail["explanations"])
    ]
