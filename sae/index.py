"""A dictionary and a stream of activations in, a published context generation of the feature store out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from feature_store.contexts import ContextLimits
from feature_store.generation import Corpus, Directions, publish
from feature_store.tables import Codes
from sae import parquet
from sae.activations import Activations
from sae.architectures import SparseAutoencoder
from sae.errors import DataError
from sae.language_model import LanguageModel
from sae.section import Count, Section
from sae.unembed import nearest, token_logits
from sae.vocabulary import token_bytes

BATCH_ROWS = 4096


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
    logits = token_logits(lm, sae.config.hook, sae.W_dec, config.tokens_promoted)
    neighbours, cosines = nearest(sae.W_dec, config.neighbours)
    directions = Directions(*(t.numpy() for t in (*logits, neighbours, cosines)))
    limits = ContextLimits(config.top_contexts, config.contexts_per_stratum)
    corpus = Corpus(codes, n_tokens, token_bytes(lm.tokenizer), contexts.document_names())
    if config.token_latents:
        parquet.write_token_latents(folder / "token_latents.parquet", codes)
    return publish(folder / "store", corpus, directions, limits, config.features_per_document, seed, facts)
