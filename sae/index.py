"""A dictionary and a stream of activations in, a published context generation of the feature store out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from feature_store import tables
from feature_store.contexts import Collected, ContextCollector, ContextLimits
from feature_store.packing import pack_columns
from feature_store.tables import Codes
from feature_store.writer import GenerationWriter
from sae import parquet
from sae.activations import Activations
from sae.architectures import SparseAutoencoder
from sae.errors import DataError
from sae.language_model import LanguageModel
from sae.section import Count, Section
from sae.unembed import nearest, token_logits
from sae.vocabulary import token_bytes

BATCH_ROWS = 4096
RANDOM_WINDOWS = 1000


class IndexConfig(Section):
    """What the feature store keeps."""

    tokens: Count | None = Field(
        default=None, ge=2, description="Tokens to index, from the training text; none: all of it."
    )
    top_contexts: Count = Field(default=20, ge=1, le=255, description="Strongest contexts kept per feature.")
    contexts_per_stratum: Count = Field(
        default=3, ge=0, le=255, description="Sampled contexts per activation stratum (of 8)."
    )
    tokens_promoted: Count = Field(
        default=10, ge=1, le=100, description="Promoted and suppressed tokens kept per feature."
    )
    neighbours: Count = Field(default=10, ge=1, le=128, description="Nearest features kept per feature.")
    features_per_document: Count = Field(default=64, ge=1, le=4096, description="Strongest features kept per document.")
    token_latents: bool = Field(default=False, description="Also write every token's latents to Parquet.")


def _encode_stream(
    sae: SparseAutoencoder, activations: Activations, n_contexts: int, folder: Path, report: Callable[[int, int], None]
) -> tuple[Codes, int]:
    """(sparse codes of the first contexts, tokens read); memory-mapped, with zeros at positions filtered out."""
    contexts, hook = activations.contexts, sae.config.hook
    shape = (n_contexts, contexts.ctx_len, sae.config.k)
    folder.mkdir(parents=True, exist_ok=True)
    index_type = np.uint16 if sae.d_sae <= 1 << 16 else np.uint32
    indices = np.memmap(folder / "indices.bin", index_type, "w+", shape=shape)
    acts = np.memmap(folder / "acts.bin", np.float32, "w+", shape=shape)
    flat_indices, flat_acts = indices.reshape(-1, shape[2]), acts.reshape(-1, shape[2])
    n_tokens = 0
    for g in range(activations.n_segments):
        first = g * activations.segment_contexts
        if first >= n_contexts:
            break
        segment = activations.segment(hook, g)
        for x, places in zip(segment.x.split(BATCH_ROWS), segment.positions.split(BATCH_ROWS), strict=True):
            inside = places < n_contexts * contexts.ctx_len
            code = sae.encode(x[inside.to(x.device)].float())
            rows = places[inside].numpy()
            flat_indices[rows] = code.top_indices.cpu().numpy()
            flat_acts[rows] = code.top_acts.cpu().numpy()
            n_tokens += len(rows)
        report(min(first + activations.segment_contexts, n_contexts) * contexts.ctx_len, n_contexts * contexts.ctx_len)
    return Codes(contexts.ids[:n_contexts], contexts.documents[:n_contexts], indices, acts), n_tokens


def collect(codes: Codes, d_sae: int, limits: ContextLimits, seed: int, n_tokens: int) -> Collected:
    """The streaming pass over the codes."""
    pilot = codes.acts[:: max(1, codes.acts.shape[0] // 64)]
    collector = ContextCollector(d_sae, limits, pilot[pilot > 0], seed)
    step = 256
    for first in range(0, len(codes.ids), step):
        part = slice(first, first + step)
        collector.add(codes.ids[part], codes.indices[part], codes.acts[part], first, 0)
    collector.n_tokens = n_tokens
    return collector.finish()


@torch.no_grad()
def index(
    sae: SparseAutoencoder,
    activations: Activations,
    lm: LanguageModel,
    config: IndexConfig,
    seed: int,
    folder: Path,
    scratch: Path,
    facts: dict[str, Any],
    report: Callable[[int, int], None],
) -> str:
    """Builds and publishes the context generation under `folder`/store; returns its file name."""
    contexts = activations.contexts
    asked = contexts.n_contexts if config.tokens is None else -(-config.tokens // contexts.ctx_len)
    n_contexts = min(asked, contexts.n_contexts)
    codes, n_tokens = _encode_stream(sae, activations, n_contexts, scratch, report)
    if not (codes.acts > 0).any():
        raise DataError(f"{sae.config.name}: no latent fires on the index corpus; nothing to index.")
    limits = ContextLimits(config.top_contexts, config.contexts_per_stratum)
    collected = collect(codes, sae.d_sae, limits, seed, n_tokens)
    logits = token_logits(lm, sae.config.hook, sae.W_dec, config.tokens_promoted)
    names = contexts.document_names()
    is_test = tables.test_documents(len(names))
    vocabulary = token_bytes(lm.tokenizer)
    counted = tables.count(
        codes, collected.maximum, len(vocabulary), is_test, logits.promoted.numpy(), config.features_per_document
    )
    writer = GenerationWriter(folder / "store", "contexts")
    id_bytes = codes.ids.dtype.itemsize
    writer.meta({
        "id_bytes": id_bytes, "log2_edges": collected.log2_edges.tolist(), "n_tokens": n_tokens,
        "tokens_test": int(is_test[codes.documents].sum()), "tokens_all": codes.ids.size, "seed": seed, **facts,
    })  # fmt: skip
    _write_features(writer, sae, collected, counted, logits, config)
    _write_packs(writer, collected, codes, sae.d_sae, f"<u{id_bytes}")
    _write_tables(writer, codes, counted, vocabulary, names, is_test)
    _write_random_windows(writer, codes, seed, f"<u{id_bytes}")
    name = writer.publish()
    if config.token_latents:
        parquet.write_token_latents(folder / "token_latents.parquet", codes)
    return name


def _blobs(array: Any, dtype: str) -> list[bytes]:
    return [row.tobytes() for row in np.ascontiguousarray(np.asarray(array), dtype=dtype)]


def _write_features(
    writer: GenerationWriter, sae: Any, collected: Collected, counted: Any, logits: Any, config: Any
) -> None:
    neighbours, cosines = nearest(sae.W_dec, config.neighbours)
    n_fired = collected.n_fired
    writer.insert("feature", {
        "feature": np.arange(sae.d_sae, dtype=np.uint32),
        "density": n_fired / collected.n_tokens,
        "n_fired": n_fired,
        "mean_act": (collected.total / np.maximum(n_fired, 1)).astype(np.float32),
        "max_act": collected.maximum,
        "n_documents": counted.n_documents,
        "n_strong": counted.n_strong,
        "n_strong_test": counted.n_strong_test,
        "histogram": _blobs(collected.histogram, "<u4"),
        "promoted_tokens": _blobs(logits.promoted, "<u4"),
        "promoted_logits": _blobs(logits.promoted_logits, "<f4"),
        "suppressed_tokens": _blobs(logits.suppressed, "<u4"),
        "suppressed_logits": _blobs(logits.suppressed_logits, "<f4"),
        "neighbours": _blobs(neighbours, "<u4"),
        "neighbour_cosines": _blobs(cosines, "<f4"),
    })  # fmt: skip


def _write_packs(writer: GenerationWriter, collected: Collected, codes: Codes, d_sae: int, id_dtype: str) -> None:
    packs = [pack_columns(tables.windows_of(collected, codes, f), id_dtype) for f in range(d_sae)]
    names = ("windows", "token_ids", "act_places", "act_values")
    columns = dict(zip(names, map(list, zip(*packs, strict=True)), strict=True))
    writer.insert("context_pack", {"feature": np.arange(d_sae, dtype=np.uint32), **columns})


def _write_tables(
    writer: GenerationWriter, codes: Codes, counted: Any, vocabulary: list[bytes], names: list[str], is_test: np.ndarray
) -> None:
    for kind, rows in (("current", counted.current), ("next", counted.following)):
        columns = dict(zip(("feature", "token", "n_explain", "n_test"), rows.T, strict=True))
        writer.insert("feature_token", {**columns, "kind": [kind] * len(rows)})
    size = len(vocabulary)
    test = is_test[codes.documents]
    explain_counts = np.bincount(codes.ids[~test], minlength=size)
    test_counts = np.bincount(codes.ids[test], minlength=size)
    writer.insert(
        "token",
        {
            "token": np.arange(size),
            "text": vocabulary,
            "n_explain": explain_counts[:size],
            "n_test": test_counts[:size],
        },
    )
    sizes = np.bincount(codes.documents.reshape(-1), minlength=len(names))
    owners = counted.document_rows[:, 0]
    cuts = np.searchsorted(owners, np.arange(len(names) + 1))
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
