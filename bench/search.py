"""Recall of searches on the 113 labelled text sets: do they find the features that tell a set's two classes apart?

    python -m bench.search runs/quickstart/dictionaries/resid-4096

The truth is taken from the model: the ten features whose largest activation in a text has the highest AUC for the second
class, each at least 0.6 on both halves of the texts. Sets with fewer than three are left out. Recall is their share among
the first 50 features that a search finds, given the name of the set, or some texts of each class, with 95 % intervals
from resampled sets.
"""

from __future__ import annotations

import argparse
import re
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

from feature_store.lookup.contrast import contrast
from feature_store.lookup.meaning import Meaning
from feature_store.lookup.search import search
from feature_store.store import Store
from sae.architectures import SparseAutoencoder
from sae.architectures.settings import batch_of
from sae.evaluation.probing_data import TextSet, text_sets
from sae.foundation.downloads import cache_dir
from sae.foundation.screen import Screen
from sae.interpret.encoder import sentence_encoder
from sae.pipeline.config import config_of_run
from sae.pipeline.sources import harvester_of
from sae.publish.dictionary import load
from sae.stream.harvest import Harvester

LONGEST, TEXTS, LETTERS = 64, 160, 300  # tokens of a text, texts of a set, letters of a text in a search
FOUND, TRUE, LEAST_TRUE, LEAST_AUC = 50, 10, 3, 0.6
EXAMPLES = (1, 5, 20, 50)


@torch.no_grad()
def largest_activations(sae: SparseAutoencoder, harvester: Harvester, texts: list[str]) -> np.ndarray:
    """[texts, d_sae]: the largest activation of every feature in every text, its first token aside."""
    pooled = np.zeros((len(texts), sae.d_sae), np.float32)
    for row, text in zip(pooled, texts, strict=True):
        ids = np.array(harvester.lm.token_ids(text, LONGEST), np.int64)[None]
        if ids.shape[1] < 2:
            continue
        harvested = harvester.harvest(ids, np.zeros_like(ids))
        batch = batch_of(sae.config, {channel: x[0, 1:] for channel, x in harvested.x.items()})
        code = sae.encode(batch.x)
        np.maximum.at(row, code.top_indices.cpu().numpy().ravel(), code.top_acts.cpu().numpy().ravel())
    return pooled


def aucs(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AUC of every column for the second class."""
    ranks, positive = rankdata(x, axis=0), int(labels.sum())
    return (ranks[labels == 1].sum(0) - positive * (positive + 1) / 2) / (positive * (len(labels) - positive))


def truth(sae: SparseAutoencoder, harvester: Harvester, texts: TextSet) -> set[int]:
    """The features that tell the classes apart."""
    parts = ((texts.train, texts.train_labels), (texts.test, texts.test_labels))
    least = np.min([aucs(largest_activations(sae, harvester, part), labels) for part, labels in parts], axis=0)
    return {int(f) for f in np.argsort(-least)[:TRUE] if least[f] >= LEAST_AUC}


def searches(store: Store, meaning: Meaning, texts: TextSet) -> dict[str, list[int]]:
    """The features that each search finds, the best first."""
    name = " ".join(word for word in re.split(r"[_\W]+", texts.name) if not word.isdigit())
    short = [" ".join(text[:LETTERS].split()) for text in texts.train]
    sides = [[text for text, label in zip(short, texts.train_labels, strict=True) if label == side] for side in (1, 0)]
    of_name = {
        "words of the name": [hit.feature for hit in search(store, name, "all", FOUND).hits],
        "meaning of the name": [near.feature for near in meaning.nearest(store, name, FOUND)],
    }
    of_texts = {}
    for n in EXAMPLES:
        first, second = ("\n".join(side[:n]) for side in sides)
        of_texts[f"{n} texts of each class"] = [hit.feature for hit in contrast(store, first, second, FOUND).hits]
    random = np.random.default_rng(0).permutation(store.n_features)[:FOUND].tolist()
    return {**of_name, **of_texts, "random features": random}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dictionary", type=Path, help="dictionary folder of a finished run")
    folder = parser.parse_args().dictionary
    run = folder.parent.parent
    sae = load(folder).eval()
    harvester = harvester_of(config_of_run(run, ""), run, sae.config.activations, Screen(quiet=True))
    meaning = Meaning(sentence_encoder().encode, cache_dir() / "meaning")
    recalls: dict[str, list[float]] = {}

    with closing(Store(folder / "store")) as store:
        for texts in text_sets(100, TEXTS - 100, 0):
            wanted = truth(sae, harvester, texts)
            if len(wanted) < LEAST_TRUE:
                continue
            for name, found in searches(store, meaning, texts).items():
                recalls.setdefault(name, []).append(len(wanted & set(found)) / len(wanted))

    for name, values in recalls.items():
        rng = np.random.default_rng(0)
        low, high = np.quantile(rng.choice(values, (1000, len(values))).mean(1), [0.025, 0.975])
        print(f"{name:24} recall {np.mean(values):.3f}  ({low:.3f} to {high:.3f}, {len(values)} sets)")


if __name__ == "__main__":
    main()
