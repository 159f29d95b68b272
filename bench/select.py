"""How well ten examples find the documents of their own kind: generalised Jaccard on latents beside four other ways.

    python -m bench.select runs/quickstart/dictionaries/resid-4096 --texts "texts/*.parquet" --classes source

Every class of the table is looked for in turn, with `--examples` of its documents; the rest of all classes is ranked. AUC and
the precision among the first 100, means over classes and draws with 95 % intervals from resampled classes. Vectors are of the
first context of each document. Beside Jaccard: cosine and Euclidean distance of the same mean codes, cosine of the mean
activations (centred over all documents), and BM25 on words.
"""

from __future__ import annotations

import argparse
import json
from glob import glob
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.feature_extraction.text import CountVectorizer

from sae.foundation.screen import Screen
from sae.interpret.intervals import auc
from sae.pipeline.reading import reader_of

FIRST, ROUNDS, K1, B = 100, 2000, 1.5, 0.75


def bm25(texts: list[str], examples: np.ndarray) -> np.ndarray:
    """BM25 of every document for the words of the examples together (Robertson and Zaragoza 2009)."""
    counts = CountVectorizer().fit_transform(texts).tocsr().astype(np.float64)
    lengths = np.asarray(counts.sum(1)).ravel()
    holding = np.bincount(counts.indices, minlength=counts.shape[1])
    idf = np.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
    query = np.asarray(counts[examples].sum(0)).ravel()
    weights = counts.copy()
    denominator = K1 * (1 - B + B * lengths / lengths.mean())
    rows = np.repeat(np.arange(len(texts)), np.diff(counts.indptr))
    weights.data = counts.data * (K1 + 1) / (counts.data + denominator[rows])
    return np.asarray(weights @ (idf * (query > 0))).ravel()


def scores(z: np.ndarray, x: np.ndarray, texts: list[str], examples: np.ndarray) -> dict[str, np.ndarray]:
    """The similarity of every document to the examples, by method."""
    prototype = z[examples].mean(0)
    common = np.minimum(z, prototype).sum(1)
    centred = x - x.mean(0)
    direction = centred[examples].mean(0)
    return {
        "jaccard": common / (z.sum(1) + prototype.sum() - common),
        "cosine": z @ prototype / (np.linalg.norm(z, axis=1) * np.linalg.norm(prototype)),
        "euclid": -np.linalg.norm(z - prototype, axis=1),
        "activations": centred @ direction / np.linalg.norm(centred, axis=1),
        "bm25": bm25(texts, examples),
    }


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dictionary", type=Path)
    parser.add_argument("--texts", required=True, help="Parquet files with the columns text and --classes")
    parser.add_argument("--classes", default="source", help="column that names the class")
    parser.add_argument("--per-class", type=int, default=120)
    parser.add_argument("--examples", type=int, default=10)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    rng, texts, classes = np.random.default_rng(0), [], []
    for file in sorted(glob(arguments.texts)):
        columns = pq.read_table(file, columns=["text", arguments.classes]).to_pydict()
        for name in sorted(set(columns[arguments.classes])):
            rows = [n for n, other in enumerate(columns[arguments.classes]) if other == name]
            picked = rng.permutation(rows)[: arguments.per_class]
            texts += [columns["text"][n] for n in picked]
            classes += [name] * len(picked)
    labels = np.array(classes)

    reader = reader_of(arguments.dictionary, None, Screen())
    codes = reader.read(texts)
    z, x = codes.means().toarray(), reader.activations(texts)
    table: dict[str, dict[str, list[list[float]]]] = {}
    for name in sorted(set(classes)):
        members = np.flatnonzero(labels == name)
        draws: dict[str, list[tuple[float, float]]] = {}
        for _ in range(arguments.draws):
            examples = rng.permutation(members)[: arguments.examples]
            rest = np.setdiff1d(np.arange(len(texts)), examples)
            for method, score in scores(z, x, texts, examples).items():
                is_own = labels[rest] == name
                first = np.argsort(-score[rest], kind="stable")[: min(FIRST, int(is_own.sum()))]
                value = auc(score[rest][is_own], score[rest][~is_own]).value
                draws.setdefault(method, []).append((value, float(is_own[first].mean())))
        for method, values in draws.items():
            for figure, column in zip(("auc", "precision"), zip(*values, strict=True), strict=True):
                table.setdefault(method, {}).setdefault(figure, []).append(list(column))

    out = {}
    for method, figures in table.items():
        for figure, values in figures.items():
            means = np.array([np.mean(column) for column in values])
            resampled = means[rng.integers(0, len(means), (ROUNDS, len(means)))].mean(1)
            low, high = np.quantile(resampled, [0.025, 0.975])
            out[f"{method} {figure}"] = [float(means.mean()), float(low), float(high)]
            print(f"{method:<12} {figure:<10} {means.mean():.3f} ({low:.3f} to {high:.3f})")
    print(
        f"{len(texts)} documents of {len(set(classes))} classes, {arguments.examples} examples, {arguments.draws} draws"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(out, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
