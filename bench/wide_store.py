"""A dictionary folder of any width for `sae bench serve`: drawn firings on drawn text, every feature labelled.

    python -m bench.wide_store wide --features 1000000
    sae bench serve wide

There are no weights and no model: numbers of rows and bytes are those of a real store, and nothing means anything.
"""

from __future__ import annotations

import argparse
from math import nan
from pathlib import Path

import numpy as np

from feature_store.dictionary_files import DictionaryCard, ModelFacts
from feature_store.indexing.codes import codes_of_rows
from feature_store.indexing.contexts import ContextLimits
from feature_store.indexing.feature_rows import Directions, Promotion
from feature_store.indexing.generation import Limits, corpus_of, publish
from sae.foundation.new_folder import write_new_folder
from sae.interpret.explanation_table import ExplanationTable
from sae.interpret.feature_map import Places
from sae.interpret.intervals import Interval
from sae.interpret.scorer import Figure
from sae.publish.dictionary import now, versions

CTX_LEN, K, WORDS, DOCUMENTS = 128, 32, 32_768, 512
LISTED, PROMOTERS = 10, 32


def words(generator: np.random.Generator) -> list[bytes]:
    """Different words of drawn letters; "the" is one of them, because the benchmark looks for it."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    drawn = {f" {''.join(generator.choice(letters, generator.integers(3, 9)))}" for _ in range(2 * WORDS)}
    return [b" the", *(word.encode() for word in sorted(drawn - {" the"}))][:WORDS]


def fill(folder: Path, d_sae: int, n_tokens: int, seed: int) -> None:
    """Writes card, contexts and labels into a new folder."""
    generator = np.random.default_rng(seed)
    shape = (n_tokens // CTX_LEN, CTX_LEN)
    vocabulary = words(generator)
    ids = np.minimum(generator.zipf(1.3, shape), WORDS).astype(np.uint16) - 1
    documents = np.repeat(np.arange(DOCUMENTS, dtype=np.uint32), -(-ids.size // DOCUMENTS))[: ids.size].reshape(shape)
    latents = generator.integers(0, d_sae, (*shape, K), dtype=np.uint32)
    codes = codes_of_rows(ids, documents, latents, generator.exponential(1.0, latents.shape).astype(np.float32))
    names = [f"text {number}" for number in range(DOCUMENTS)]
    corpus = corpus_of(codes, vocabulary, names, document_keys=np.arange(DOCUMENTS, dtype=np.uint64))

    def listed(size: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
        values = -np.sort(-generator.random((d_sae, LISTED), np.float32), axis=1)
        return generator.integers(0, size, (d_sae, LISTED), dtype=dtype), values

    promoters = generator.integers(0, d_sae, (WORDS, PROMOTERS))
    heights = -np.sort(-generator.random((WORDS, PROMOTERS), np.float32), axis=1)
    promotion = Promotion(np.arange(WORDS), promoters, heights)
    directions = Directions(*listed(WORDS, np.int64), *listed(WORDS, np.int64), *listed(d_sae, np.int64), promotion)
    facts = {"hook": "resid_post.0", "weights_sha256": "0" * 64}
    publish(folder / "store", corpus, directions, Limits(ContextLimits(), 64, seed), facts=facts)

    table = ExplanationTable(seed)
    for feature, (word, other) in enumerate(generator.integers(0, WORDS, (d_sae, 2)).tolist()):
        text = f"the words “{vocabulary[word].decode().strip()}” and “{vocabulary[other].decode().strip()}”"
        key = table.add_text(feature, "token", text, None)
        value = float(generator.random())
        interval = Interval(value, max(value - 0.1, 0), min(value + 0.1, 1))
        table.choose(key, Figure("balanced_accuracy", interval, 0.5, 12, n_neg=100), nan)
    x, y = generator.random((2, d_sae), np.float32)
    table.places = Places(np.arange(d_sae), x, y)
    table.publish(folder / "store", None)

    sae = {"name": "wide", "architecture": "topk", "hook": "resid_post.0", "d_sae": d_sae, "k": K}
    DictionaryCard(
        format_version=DictionaryCard.current_version, run="drawn", name="wide", created=now(), d_model=None, d_out=None,
        sae=sae, selection_dtype="float32", versions=versions(), weights_sha256="0" * 64, weights_files={},
        model=ModelFacts(name="drawn"),
    ).write(folder)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--features", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=262_144)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_new_folder(arguments.folder, lambda place: fill(place, arguments.features, arguments.tokens, arguments.seed))
