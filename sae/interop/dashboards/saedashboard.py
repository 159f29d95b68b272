"""SAEDashboard's batches for Neuronpedia: batch-N.json, which its own converter reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import orjson

from feature_store.lookup import neuronpedia
from sae.foundation.screen import Progress
from sae.interop.dashboard import Dashboard, Page, Published, activations_of, as_line

# What a store does not know: alignment and correlation with single neurons, and the histogram of all logits.
UNKNOWN = (
    "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices",
    "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices", "correlated_features_l1",
    "correlated_features_pearson", "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist",
)  # fmt: skip
SAME = (
    "pos_str", "pos_values", "neg_str", "neg_values", "frac_nonzero", "freq_hist_data_bar_heights",
    "freq_hist_data_bar_values", "vector",
)  # fmt: skip


@final
class SaeDashboard(Dashboard):
    """One file for every 128 features; lists that a store knows nothing of are empty."""

    def write(self, published: Published, folder: Path, progress: Progress) -> None:
        """batch-0.json, batch-1.json, ..."""
        head = {"model_id": published.place.model, "layer": published.layer, "sae_set": published.card.name}
        for number, pages in enumerate(published.batches(progress)):
            features = [orjson.Fragment(orjson.dumps(_feature(published, page))) for page in pages]
            batch = {**head, "sae_id_suffix": None, "features": features}
            (folder / f"batch-{number}.json").write_bytes(as_line(batch))


def _feature(published: Published, page: Page) -> dict[str, Any]:
    place, meta = published.place, published.store.meta
    row = neuronpedia.feature_row(place, page.detail)
    return {
        "feature_index": page.detail["feature"],
        **{name: [] for name in UNKNOWN},
        **{name: row[name] for name in SAME},
        "n_prompts_total": meta["tokens_all"] // meta["ctx_len"],
        "n_tokens_in_prompt": meta["ctx_len"],
        "dataset": meta.get("text", ""),
        "activations": [
            {
                "bin_min": activation["binMin"],
                "bin_max": activation["binMax"],
                "bin_contains": activation["binContains"],
                "tokens": activation["tokens"],
                "values": activation["values"],
                "qualifying_token_index": activation["qualifyingTokenIndex"],
            }
            for activation in activations_of(place, page)
        ],
    }
