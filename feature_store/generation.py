"""A context generation from sparse codes: the streaming pass, the counts, and the rows of every table."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from feature_store import tables
from feature_store.contexts import Collected, ContextCollector, ContextLimits
from feature_store.packing import pack_columns
from feature_store.tables import Codes, Tables
from feature_store.writer import GenerationWriter

RANDOM_WINDOWS = 1000
CONTEXTS_PER_BATCH = 256
PILOT_CONTEXTS = 64


class Corpus(NamedTuple):
    """What was indexed: codes, the tokens the dictionary read, bytes of every token id, document names."""

    codes: Codes
    n_tokens: int
    vocabulary: list[bytes]
    document_names: list[str]


class Directions(NamedTuple):
    """What decoder rows say on their own, [d_sae, n] each: tokens and logits, nearest features and cosines."""

    promoted: np.ndarray
    promoted_logits: np.ndarray
    suppressed: np.ndarray
    suppressed_logits: np.ndarray
    neighbours: np.ndarray
    neighbour_cosines: np.ndarray


def collect(codes: Codes, d_sae: int, limits: ContextLimits, seed: int, n_tokens: int) -> Collected:
    """The streaming pass over the codes."""
    pilot = codes.acts[:: max(1, codes.acts.shape[0] // PILOT_CONTEXTS)]
    collector = ContextCollector(d_sae, limits, pilot[pilot > 0], seed)
    for first in range(0, len(codes.ids), CONTEXTS_PER_BATCH):
        part = slice(first, first + CONTEXTS_PER_BATCH)
        collector.add(codes.ids[part], codes.indices[part], codes.acts[part], first)
    return collector.finish(n_tokens)


def publish(
    store: Path,
    corpus: Corpus,
    directions: Directions,
    limits: ContextLimits,
    features_per_document: int,
    seed: int,
    facts: dict[str, Any],
) -> str:
    """Builds and publishes a context generation under `store`; returns its file name."""
    codes, n_tokens, vocabulary, names = corpus
    d_sae = len(directions.promoted)
    collected = collect(codes, d_sae, limits, seed, n_tokens)
    is_test = tables.test_documents(len(names))
    counted = tables.count(
        codes, collected.maximum, len(vocabulary), is_test, directions.promoted, features_per_document
    )
    id_dtype = f"<u{codes.ids.dtype.itemsize}"
    writer = GenerationWriter(store, "contexts")
    writer.meta({
        "id_bytes": codes.ids.dtype.itemsize, "log2_edges": collected.log2_edges.tolist(), "n_tokens": n_tokens,
        "tokens_test": int(is_test[codes.documents].sum()), "tokens_all": codes.ids.size, "seed": seed, **facts,
    })  # fmt: skip
    _write_features(writer, collected, counted, directions)
    _write_packs(writer, collected, codes, id_dtype)
    _write_counts(writer, codes, counted, vocabulary, is_test)
    _write_documents(writer, codes, counted, names, is_test)
    _write_random_windows(writer, codes, seed, id_dtype)
    return writer.publish()


def _blobs(array: Any, dtype: str) -> list[bytes]:
    return [row.tobytes() for row in np.ascontiguousarray(np.asarray(array), dtype=dtype)]


def _write_features(writer: GenerationWriter, collected: Collected, counted: Tables, directions: Directions) -> None:
    n_fired = collected.n_fired
    writer.insert("feature", {
        "feature": np.arange(len(n_fired), dtype=np.uint32),
        "density": n_fired / collected.n_tokens,
        "n_fired": n_fired,
        "mean_act": (collected.total / np.maximum(n_fired, 1)).astype(np.float32),
        "max_act": collected.maximum,
        "n_documents": counted.n_documents,
        "n_strong": counted.n_strong,
        "n_strong_test": counted.n_strong_test,
        "histogram": _blobs(collected.histogram, "<u4"),
        "promoted_tokens": _blobs(directions.promoted, "<u4"),
        "promoted_logits": _blobs(directions.promoted_logits, "<f4"),
        "suppressed_tokens": _blobs(directions.suppressed, "<u4"),
        "suppressed_logits": _blobs(directions.suppressed_logits, "<f4"),
        "neighbours": _blobs(directions.neighbours, "<u4"),
        "neighbour_cosines": _blobs(directions.neighbour_cosines, "<f4"),
    })  # fmt: skip


def _write_packs(writer: GenerationWriter, collected: Collected, codes: Codes, id_dtype: str) -> None:
    features = range(len(collected.n_fired))
    packs = [pack_columns(tables.windows_of(collected, codes, f), id_dtype) for f in features]
    names = ("windows", "token_ids", "act_places", "act_values")
    columns = dict(zip(names, map(list, zip(*packs, strict=True)), strict=True))
    writer.insert("context_pack", {"feature": np.array(features, dtype=np.uint32), **columns})


def _write_counts(
    writer: GenerationWriter, codes: Codes, counted: Tables, vocabulary: list[bytes], is_test: np.ndarray
) -> None:
    for kind, rows in (("current", counted.current), ("next", counted.following)):
        columns = dict(zip(("feature", "token", "n_explain", "n_test"), rows.T, strict=True))
        writer.insert("feature_token", {**columns, "kind": [kind] * len(rows)})
    size = len(vocabulary)
    test = is_test[codes.documents]
    explain, tested = (np.bincount(codes.ids[part], minlength=size) for part in (~test, test))
    writer.insert("token", {"token": np.arange(size), "text": vocabulary, "n_explain": explain, "n_test": tested})


def _write_documents(
    writer: GenerationWriter, codes: Codes, counted: Tables, names: list[str], is_test: np.ndarray
) -> None:
    sizes = np.bincount(codes.documents.reshape(-1), minlength=len(names))
    cuts = np.searchsorted(counted.document_rows[:, 0], np.arange(len(names) + 1))
    spans = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    writer.insert("document", {
        "document": np.arange(len(names)),
        "name": names,
        "n_tokens": sizes,
        "is_test": is_test,
        "latents": [counted.document_rows[s, 1].astype("<u4").tobytes() for s in spans],
        "means": [counted.document_means[s].astype("<f4").tobytes() for s in spans],
        "maxima": [counted.document_maxima[s].astype("<f4").tobytes() for s in spans],
    })  # fmt: skip


def _write_random_windows(writer: GenerationWriter, codes: Codes, seed: int, id_dtype: str) -> None:
    documents, ids, latents = zip(*tables.random_windows(codes, RANDOM_WINDOWS, seed), strict=True)
    writer.insert("random_window", {
        "id": np.arange(len(documents)),
        "document": documents,
        "token_ids": [row.astype(id_dtype).tobytes() for row in ids],
        "latents": [row.astype("<u4").tobytes() for row in latents],
    })  # fmt: skip
