"""A context generation from sparse codes: the streaming pass, the counts, and the rows of every table."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from feature_store import tables
from feature_store.contexts import Collected, ContextCollector, ContextLimits
from feature_store.formats import FORMATS, N_POSITIONS
from feature_store.negatives import hard_negatives
from feature_store.packing import pack_columns
from feature_store.statistics import GROUPS, Stream
from feature_store.tables import Codes, Documents, Tables
from feature_store.windows import random_windows, windows_of
from feature_store.writer import GenerationWriter

RANDOM_WINDOWS = 1000
CONTEXTS_PER_BATCH = 256
PILOT_CONTEXTS = 64
FEATURES_PER_INSERT = 4096
MEMORY_BYTES = 2_000_000_000


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
    memory_bytes: int = MEMORY_BYTES,
) -> str:
    """Builds and publishes a context generation under `store`; returns its file name.

    Firings held at a time take at most `memory_bytes`.
    """
    codes, n_tokens, vocabulary, names = corpus
    codes = Codes(*map(np.asarray, codes))  # memory-mapped files, without the price of their class at every slice
    d_sae = len(directions.promoted)
    collected = collect(codes, d_sae, limits, seed, n_tokens)
    is_test = tables.test_documents(len(names))
    stream = tables.stream_of(codes, vocabulary, is_test)
    counted = tables.count(
        codes, stream, collected.n_fired, collected.maximum, directions.promoted, directions.neighbours.shape[1],
        memory_bytes,
    )  # fmt: skip
    documents = tables.count_documents(codes, d_sae, features_per_document)
    id_dtype = f"<u{codes.ids.dtype.itemsize}"
    writer = GenerationWriter(store, "contexts")
    writer.meta({
        "id_bytes": codes.ids.dtype.itemsize, "log2_edges": collected.log2_edges.tolist(), "n_tokens": n_tokens,
        "tokens_test": int(is_test[codes.documents].sum()), "tokens_all": codes.ids.size, "seed": seed,
        **_totals(stream), **facts,
    })  # fmt: skip
    _write_features(writer, collected, counted, documents.n_documents, directions)
    _write_packs(writer, collected, counted, codes, directions, id_dtype)
    _write_counts(writer, codes, counted, vocabulary, is_test)
    _write_documents(writer, codes, documents, names, is_test)
    _write_random_windows(writer, codes, seed, id_dtype)
    return writer.publish()


def _blobs(array: Any, dtype: str) -> list[bytes]:
    return [row.tobytes() for row in np.ascontiguousarray(np.asarray(array), dtype=dtype)]


def _write_features(
    writer: GenerationWriter, collected: Collected, counted: Tables, n_documents: np.ndarray, directions: Directions
) -> None:
    n_fired = collected.n_fired
    writer.insert("feature", {
        "feature": np.arange(len(n_fired), dtype=np.uint32),
        "density": n_fired / collected.n_tokens,
        "n_fired": n_fired,
        "mean_act": (collected.total / np.maximum(n_fired, 1)).astype(np.float32),
        "max_act": collected.maximum,
        "n_documents": n_documents,
        "n_documents_strong_test": counted.n_documents_strong_test,
        "n_strong": counted.n_strong,
        "n_strong_test": counted.n_strong_test,
        "histogram": _blobs(collected.histogram, "<u4"),
        "promoted_tokens": _blobs(directions.promoted, "<u4"),
        "promoted_logits": _blobs(directions.promoted_logits, "<f4"),
        "suppressed_tokens": _blobs(directions.suppressed, "<u4"),
        "suppressed_logits": _blobs(directions.suppressed_logits, "<f4"),
        "neighbours": _blobs(directions.neighbours, "<u4"),
        "neighbour_cosines": _blobs(directions.neighbour_cosines, "<f4"),
        "coactive": _blobs(counted.statistics.coactive, "<u4"),
        "coactive_scores": _blobs(counted.statistics.coactive_scores, "<f4"),
        "positions": _blobs(counted.statistics.position, "<u4"),
        "formats": _blobs(counted.statistics.format, "<u4"),
        "lookup": _blobs(counted.statistics.lookup, "<f8"),
    })  # fmt: skip


def _totals(stream: Stream) -> dict[str, Any]:
    """How many tokens stand at every position and have every format, in (explain, test) documents."""
    parts = [stream.is_test == part for part in (False, True)]
    return {
        "position_totals": [np.bincount(stream.position[p], minlength=N_POSITIONS).tolist() for p in parts],
        "format_totals": [np.bincount(stream.format[p], minlength=len(FORMATS)).tolist() for p in parts],
        "group_totals": np.bincount(stream.group[stream.is_test], minlength=GROUPS).tolist(),
    }


def _write_packs(
    writer: GenerationWriter, collected: Collected, counted: Tables, codes: Codes, directions: Directions, id_dtype: str
) -> None:
    features = range(len(collected.n_fired))
    n = min(directions.neighbours.shape[1], counted.statistics.coactive.shape[1])
    sources = np.stack([directions.neighbours[:, :n], counted.statistics.coactive[:, :n]], axis=1)
    negatives = hard_negatives(sources, collected.top_context, collected.top_position, codes.indices, codes.acts)
    names = ("windows", "token_ids", "act_places", "act_values")
    for start in range(0, len(features), FEATURES_PER_INSERT):
        part = features[start : start + FEATURES_PER_INSERT]
        packs = [pack_columns(windows_of(collected, codes, f), id_dtype) for f in part]
        columns: dict[str, list[bytes]] = dict(zip(names, map(list, zip(*packs, strict=True)), strict=True))
        columns["negatives"] = [records.tobytes() for records in negatives[part.start : part.stop]]
        writer.insert("context_pack", {"feature": np.array(part, dtype=np.uint32), **columns})


def _write_counts(
    writer: GenerationWriter, codes: Codes, counted: Tables, vocabulary: list[bytes], is_test: np.ndarray
) -> None:
    kinds = (("current", counted.current), ("next", counted.following), ("previous", counted.preceding))
    for kind, rows in kinds:
        columns = dict(zip(("feature", "token", "n_explain", "n_test"), rows.T, strict=True))
        writer.insert("feature_token", {**columns, "kind": [kind] * len(rows)})
    names = ("feature", "first", "second", "n_explain", "n_test", "occurrences_explain", "occurrences_test")
    writer.insert("feature_bigram", dict(zip(names, counted.statistics.bigrams.T, strict=True)))
    size = len(vocabulary)
    test = is_test[codes.documents]
    explain, tested = (np.bincount(codes.ids[part], minlength=size) for part in (~test, test))
    writer.insert("token", {"token": np.arange(size), "text": vocabulary, "n_explain": explain, "n_test": tested})


def _write_documents(
    writer: GenerationWriter, codes: Codes, documents: Documents, names: list[str], is_test: np.ndarray
) -> None:
    sizes = np.bincount(codes.documents.reshape(-1), minlength=len(names))
    cuts = np.searchsorted(documents.rows[:, 0], np.arange(len(names) + 1))
    spans = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    writer.insert("document", {
        "document": np.arange(len(names)),
        "name": names,
        "n_tokens": sizes,
        "is_test": is_test,
        "latents": [documents.rows[s, 1].astype("<u4").tobytes() for s in spans],
        "means": [documents.means[s].astype("<f4").tobytes() for s in spans],
        "maxima": [documents.maxima[s].astype("<f4").tobytes() for s in spans],
    })  # fmt: skip


def _write_random_windows(writer: GenerationWriter, codes: Codes, seed: int, id_dtype: str) -> None:
    found = random_windows(codes, RANDOM_WINDOWS, seed)
    writer.insert("random_window", {
        "id": np.arange(len(found)),
        "document": [w.document for w in found],
        "token_ids": [w.token_ids.astype(id_dtype).tobytes() for w in found],
        "peak": [w.peak for w in found],
        "place": [w.place for w in found],
        "latents": [w.latents.astype("<u4").tobytes() for w in found],
    })  # fmt: skip
