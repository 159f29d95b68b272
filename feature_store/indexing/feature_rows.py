"""The rows of four tables that a context generation has per feature, for a published file or a shard of it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int

from feature_store.indexing.codes import Codes
from feature_store.indexing.contexts import Collected
from feature_store.indexing.negatives import hard_negatives
from feature_store.indexing.tables import Tables
from feature_store.indexing.windows import Peaks, windows_of
from feature_store.packing import pack_columns

FEATURES_PER_INSERT = 4096


class Writer(Protocol):
    """Takes rows: a generation under construction, or a shard of it."""

    def insert(self, table: str, columns: dict[str, Any]) -> None:
        """Appends columns (lists or arrays of one length) to a table of the schema."""


class Promotion(NamedTuple):
    """Features that promote each of some tokens most, strongest first, and how far (schema.py, table promotion)."""

    tokens: Int[np.ndarray, " tokens"]
    features: Int[np.ndarray, "tokens n"]
    heights: Float[np.ndarray, "tokens n"]


NO_PROMOTION = Promotion(np.empty(0, np.int64), np.empty((0, 0), np.int64), np.empty((0, 0), np.float32))


class Directions(NamedTuple):
    """What the decoder rows alone say, [d_sae, n] each: tokens with logits, nearest features with cosines; and of tokens
    the features that promote them. Numbers below 0 stand at the end of a row, where nothing is known.
    """

    promoted: Int[np.ndarray, "d_sae n"]
    promoted_logits: Float[np.ndarray, "d_sae n"]
    suppressed: Int[np.ndarray, "d_sae n"]
    suppressed_logits: Float[np.ndarray, "d_sae n"]
    neighbours: Int[np.ndarray, "d_sae n_nearest"]
    neighbour_cosines: Float[np.ndarray, "d_sae n_nearest"]
    promotion: Promotion = NO_PROMOTION


def write_feature_rows(
    writer: Writer, codes: Codes, collected: Collected, counted: Tables, *, n_documents: Int[np.ndarray, " d_sae"], directions: Directions,
    words: dict[int, str], features: slice,
) -> None:  # fmt: skip
    """Writes the rows of `features`; `counted` is about these features, all else about every feature.

    `words` are the texts of the words that `counted` numbers.
    """
    _write_features(writer, collected, counted, n_documents, directions=directions, words=words, features=features)
    _write_packs(writer, collected, counted, codes, directions=directions, features=features)
    for kind, rows in (("current", counted.current), ("next", counted.following), ("previous", counted.preceding)):
        columns = dict(zip(("feature", "token", "n_explain", "n_test"), rows.T, strict=True))
        writer.insert("feature_token", {**columns, "kind": [kind] * len(rows)})

    names = ("feature", "first", "second", "n_explain", "n_test", "occurrences_explain", "occurrences_test")
    writer.insert("feature_bigram", dict(zip(names, counted.statistics.bigrams.T, strict=True)))


def _blobs(array: Any, dtype: str) -> list[bytes]:
    return [row.tobytes() for row in np.ascontiguousarray(np.asarray(array), dtype=dtype)]


def _known_pairs(numbers: Any, values: Any) -> tuple[list[bytes], list[bytes]]:
    """Rows of numbers and of their values, each up to the first number below 0."""
    lengths = (np.asarray(numbers) >= 0).sum(1)
    columns = _blobs(numbers, "<u4"), _blobs(values, "<f4")
    for row in np.flatnonzero(lengths < numbers.shape[1]).tolist():
        for column in columns:
            column[row] = column[row][: 4 * int(lengths[row])]
    return columns


def _write_features(
    writer: Writer,
    collected: Collected,
    counted: Tables,
    n_documents: np.ndarray,
    *,
    directions: Directions,
    words: dict[int, str],
    features: slice,
) -> None:
    n_fired = collected.n_fired[features]
    promoted = _known_pairs(directions.promoted[features], directions.promoted_logits[features])
    suppressed = _known_pairs(directions.suppressed[features], directions.suppressed_logits[features])
    neighbours = _known_pairs(directions.neighbours[features], directions.neighbour_cosines[features])
    writer.insert("feature", {
        "feature": np.arange(features.start, features.stop, dtype=np.uint32),
        "density": collected.density(features),
        "n_fired": n_fired,
        "mean_act": (collected.total[features] / np.maximum(n_fired, 1)).astype(np.float32),
        "max_act": collected.maximum[features],
        "n_documents": n_documents[features],
        "n_documents_strong_test": counted.n_documents_strong_test,
        "n_strong": counted.n_strong,
        "n_strong_test": counted.n_strong_test,
        "histogram": _blobs(collected.histogram[features], "<u4"),
        "promoted_tokens": promoted[0],
        "promoted_logits": promoted[1],
        "suppressed_tokens": suppressed[0],
        "suppressed_logits": suppressed[1],
        "neighbours": neighbours[0],
        "neighbour_cosines": neighbours[1],
        "coactive": _blobs(counted.statistics.coactive, "<u4"),
        "coactive_scores": _blobs(counted.statistics.coactive_scores, "<f4"),
        "positions": _blobs(counted.statistics.position, "<u4"),
        "formats": _blobs(counted.statistics.format, "<u4"),
        "lookup": _blobs(counted.statistics.lookup, "<f8"),
        "mass_tokens": _blobs(counted.samples.mass_token, "<u4"),
        "mass_shares": _blobs(counted.samples.mass_share, "<f4"),
        "words": ["\n".join(words[number] for number in row[row >= 0].tolist()) for row in counted.words.words],
        "word_hits": _blobs(counted.words.hits, "<u4"),
        "word_covered": _blobs(counted.words.covered, "<u4"),
    })  # fmt: skip


def _peaks(counted: Tables, number: int) -> Peaks:
    samples = counted.samples
    return Peaks(samples.weaker[number], samples.uniform[number], int(samples.available[number]))


def _write_packs(
    writer: Writer, collected: Collected, counted: Tables, codes: Codes, *, directions: Directions, features: slice
) -> None:
    id_dtype = f"<u{codes.ids.dtype.itemsize}"
    numbers = range(features.start, features.stop)
    n = min(directions.neighbours.shape[1], counted.statistics.coactive.shape[1])
    sources = np.stack([directions.neighbours[features, :n], counted.statistics.coactive[:, :n]], axis=1)
    negatives = hard_negatives(sources, collected.top_context, collected.top_position, codes, start=features.start)
    names = ("windows", "token_ids", "act_places", "act_values")

    for start in range(0, len(numbers), FEATURES_PER_INSERT):
        part = numbers[start : start + FEATURES_PER_INSERT]
        packs = [
            pack_columns(windows_of(collected, codes, f, _peaks(counted, f - features.start)), id_dtype) for f in part
        ]
        columns: dict[str, list[bytes]] = dict(zip(names, map(list, zip(*packs, strict=True)), strict=True))
        columns["negatives"] = [records.tobytes() for records in negatives[start : start + len(part)]]
        writer.insert("context_pack", {"feature": np.array(part, dtype=np.uint32), **columns})
