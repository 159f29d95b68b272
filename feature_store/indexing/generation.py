"""A context generation from sparse codes: the streaming pass, the counts, and the rows of every table."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt

from feature_store.errors import StoreError
from feature_store.indexing import tables
from feature_store.indexing.codes import Codes
from feature_store.indexing.contexts import Collected, ContextCollector, ContextLimits
from feature_store.indexing.document_features import Documents, count_documents
from feature_store.indexing.feature_rows import Directions, Promotion, write_feature_rows
from feature_store.indexing.formats import FORMATS, N_POSITIONS
from feature_store.indexing.shards import ShardWriter, merge
from feature_store.indexing.statistics import GROUPS, Stream
from feature_store.indexing.windows import random_windows
from feature_store.indexing.words import text_of
from feature_store.writer import GenerationWriter

RANDOM_WINDOWS = 1000
CONTEXTS_PER_BATCH = 256
PILOT_CONTEXTS = 64
MEMORY_BYTES = 2_000_000_000
FEATURES_AT_A_TIME = 32_768  # whose counts are in memory
TOKENS_PER_INSERT = 32_768
TEXT_PER_INSERT = 4_000_000  # tokens


class Corpus(NamedTuple):
    """What is indexed: codes, and the text with all that does not depend on them.

    is_read: the tokens that the dictionary read; is_test: the documents that test explanations. known_density: what
    others counted on a whole text, of which only some contexts are here; then nothing is said of where a feature is silent.
    """

    codes: Codes
    vocabulary: list[bytes]
    document_names: list[str]
    is_test: Bool[np.ndarray, " documents"]
    is_read: Bool[np.ndarray, "contexts ctx_len"]
    stream: Stream
    known_density: Float[np.ndarray, " d_sae"] | None = None

    def with_codes(self, codes: Codes) -> Corpus:
        """The same text with another dictionary's codes."""
        return self._replace(codes=Codes(*map(np.asarray, codes)))


def corpus_of(
    codes: Codes,
    vocabulary: list[bytes],
    document_names: list[str],
    *,
    document_keys: UInt[np.ndarray, " documents"],
    is_read: Bool[np.ndarray, "contexts ctx_len"] | None = None,
) -> Corpus:
    """A corpus: `vocabulary` has the bytes of every token id; documents with one similarity key are on one side of the
    split into explain and test; `is_read` marks the tokens that the dictionary read (default: all).
    """
    codes = Codes(*map(np.asarray, codes))  # memory-mapped, without the price of their class at every slice
    _check_inside(codes.ids, len(vocabulary), "token")
    _check_inside(codes.documents, len(document_names), "document")
    is_test = tables.in_test_part(document_keys)
    is_read = np.ones(codes.ids.shape, bool) if is_read is None else is_read
    return Corpus(
        codes,
        vocabulary,
        document_names,
        is_test,
        is_read=is_read,
        stream=tables.stream_of(codes, vocabulary, is_test),
    )


def collect(codes: Codes, d_sae: int, limits: ContextLimits, seed: int, *, n_tokens: int) -> Collected:
    """The streaming pass over the codes."""
    n_contexts, ctx_len = codes.ids.shape
    sample = range(0, n_contexts, max(1, n_contexts // PILOT_CONTEXTS))
    parts = [codes.latents_of(slice(c * ctx_len, (c + 1) * ctx_len)) for c in sample]
    collector = ContextCollector(d_sae, limits, np.concatenate([codes.acts[part] for part in parts]), seed)
    for first in range(0, n_contexts, CONTEXTS_PER_BATCH):
        collector.add(codes, slice(first, first + CONTEXTS_PER_BATCH))
    return collector.finish(n_tokens)


class Limits(NamedTuple):
    """How much is kept per feature and per document, the seed of samples, and the memory for firings held at a time."""

    contexts: ContextLimits
    features_per_document: int
    seed: int
    memory_bytes: int = MEMORY_BYTES
    keep_text: bool = True  # whole documents, so that a reader can go on beyond a window


class _Pass(NamedTuple):
    """What every part of a generation reads."""

    codes: Codes
    collected: Collected
    stream: Stream
    documents: Documents


def _pass(corpus: Corpus, d_sae: int, limits: Limits) -> _Pass:
    codes = corpus.codes
    collected = collect(codes, d_sae, limits.contexts, limits.seed, n_tokens=int(corpus.is_read.sum()))
    return _Pass(
        codes,
        replace(collected, known_density=corpus.known_density),
        corpus.stream,
        documents=count_documents(codes, d_sae, limits.features_per_document),
    )


def _check_inside(numbers: np.ndarray, n: int, what: str) -> None:
    """Compiled code does not look whether a number is inside a table: one that is not would write outside of it."""
    if numbers.size and numbers.max() >= n:
        raise StoreError(f"index: {what} {numbers.max()} in the text, there are {n}; the files of tokens are damaged.")


def write_shard(
    folder: Path, number: int, corpus: Corpus, directions: Directions, *, limits: Limits, features: slice
) -> None:
    """Writes the rows of some consecutive features to Parquet files in `folder`, for `publish` to join.

    Every process makes the pass over the codes, which is short; counting and cutting windows are shared out.
    """
    read = _pass(corpus, len(directions.promoted), limits)
    writer = ShardWriter(folder, number)
    _write_features(writer, read, directions, corpus.vocabulary, memory_bytes=limits.memory_bytes, features=features)


def publish(
    store: Path,
    corpus: Corpus,
    directions: Directions,
    limits: Limits,
    *,
    facts: dict[str, Any],
    shards: Path | None = None,
    with_pages: bool = True,
) -> str:
    """Builds and publishes a context generation under `store`; returns its file name.

    `shards` is a folder that `write_shard` filled for all features; without it the features are counted here. A store
    that nobody will look at needs no pages.
    """
    vocabulary, is_test = corpus.vocabulary, corpus.is_test
    read = _pass(corpus, len(directions.promoted), limits)
    codes, seed = read.codes, limits.seed
    writer = GenerationWriter(store, "contexts")
    writer.meta({
        "id_bytes": codes.ids.dtype.itemsize, "log2_edges": read.collected.log2_edges.tolist(), "n_tokens": int(corpus.is_read.sum()),
        "ctx_len": codes.ids.shape[1], "tokens_test": int(is_test[codes.documents].sum()), "tokens_all": codes.ids.size, "seed": seed,
        **_totals(read.stream), **facts,
    })  # fmt: skip
    if shards is None:
        every = slice(0, len(directions.promoted))
        _write_features(writer, read, directions, vocabulary, memory_bytes=limits.memory_bytes, features=every)
    else:
        merge(writer, shards)

    _write_tokens(writer, codes, vocabulary, is_test)
    _write_documents(writer, codes, read.documents, corpus.document_names, is_test=is_test)
    if limits.keep_text:
        _write_document_text(writer, codes, len(corpus.document_names))
    _write_random_windows(writer, codes, corpus.is_read, seed)
    _write_promotion(writer, directions.promotion)

    return writer.publish(with_pages=with_pages)


def _write_features(
    writer: GenerationWriter | ShardWriter,
    read: _Pass,
    directions: Directions,
    vocabulary: list[bytes],
    *,
    memory_bytes: int,
    features: slice,
) -> None:
    is_excerpt = read.collected.known_density is not None
    for start in range(features.start, features.stop, FEATURES_AT_A_TIME):
        part = slice(start, min(start + FEATURES_AT_A_TIME, features.stop))
        counted = tables.count(
            read.codes,
            read.stream,
            read.collected,
            promoted=directions.promoted,
            n_coactive=0 if is_excerpt else directions.neighbours.shape[1],
            memory_bytes=memory_bytes,
            features=part,
        )
        stream_words, ids = read.stream.words.words, read.stream.ids
        numbers = np.unique(counted.words.words)
        words = {number: text_of(stream_words, number, ids, vocabulary) for number in numbers[numbers >= 0].tolist()}
        write_feature_rows(
            writer,
            read.codes,
            read.collected,
            counted,
            n_documents=read.documents.n_documents,
            directions=directions,
            words=words,
            features=part,
        )


def _totals(stream: Stream) -> dict[str, Any]:
    """How many tokens stand at every position and have every format, in (explain, test) documents."""
    parts = [stream.is_test == part for part in (False, True)]
    return {
        "position_totals": [np.bincount(stream.position[p], minlength=N_POSITIONS).tolist() for p in parts],
        "format_totals": [np.bincount(stream.format[p], minlength=len(FORMATS)).tolist() for p in parts],
        "group_totals": np.bincount(stream.group[stream.is_test], minlength=GROUPS).tolist(),
    }


def _write_tokens(writer: GenerationWriter, codes: Codes, vocabulary: list[bytes], is_test: np.ndarray) -> None:
    size = len(vocabulary)
    test = is_test[codes.documents]
    explain, tested = (np.bincount(codes.ids[part], minlength=size) for part in (~test, test))
    writer.insert("token", {"token": np.arange(size), "text": vocabulary, "n_explain": explain, "n_test": tested})


def _write_documents(
    writer: GenerationWriter, codes: Codes, documents: Documents, names: list[str], *, is_test: np.ndarray
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


def _write_document_text(writer: GenerationWriter, codes: Codes, n_documents: int) -> None:
    """The tokens of every document, which follow each other in the stream."""
    ids, id_dtype = codes.ids.reshape(-1), f"<u{codes.ids.dtype.itemsize}"
    ends = np.cumsum(np.bincount(codes.documents.reshape(-1), minlength=n_documents))
    first = 0
    while first < n_documents:
        start = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, start + TEXT_PER_INSERT)), first + 1)
        bounds = [start, *ends[first:last].tolist()]
        texts = [ids[a:b].astype(id_dtype).tobytes() for a, b in itertools.pairwise(bounds)]
        writer.insert("document_text", {"document": np.arange(first, last), "token_ids": texts})
        first = last


def _write_random_windows(writer: GenerationWriter, codes: Codes, is_read: np.ndarray, seed: int) -> None:
    windows, id_dtype = random_windows(codes, is_read, RANDOM_WINDOWS, seed), f"<u{codes.ids.dtype.itemsize}"
    writer.insert("random_window", {
        "id": np.arange(len(windows)),
        "document": [w.document for w in windows],
        "token_ids": [w.token_ids.astype(id_dtype).tobytes() for w in windows],
        "peak": [w.peak for w in windows],
        "place": [w.place for w in windows],
        "latents": [w.latents.astype("<u4").tobytes() for w in windows],
    })  # fmt: skip


def _write_promotion(writer: GenerationWriter, promotion: Promotion) -> None:
    for start in range(0, len(promotion.tokens), TOKENS_PER_INSERT):
        part = slice(start, start + TOKENS_PER_INSERT)
        raised = promotion.heights[part] > 0
        pairs = list(zip(promotion.features[part], promotion.heights[part], raised, strict=True))
        writer.insert("promotion", {
            "token": promotion.tokens[part].astype(np.uint32),
            "features": [features[up].astype("<u4").tobytes() for features, _, up in pairs],
            "heights": [heights[up].astype("<f4").tobytes() for _, heights, up in pairs],
        })  # fmt: skip
