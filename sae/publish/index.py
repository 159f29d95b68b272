"""From a dictionary and a stream of activations to a published context generation of the feature store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from feature_store.indexing import feature_rows
from feature_store.indexing.budget import budget
from feature_store.indexing.codes import Codes
from feature_store.indexing.contexts import ContextLimits
from feature_store.indexing.generation import Directions, Limits, corpus_of, publish, write_shard
from sae.architectures import SparseAutoencoder
from sae.foundation.files import writing
from sae.foundation.screen import Progress
from sae.foundation.section import Count, Section
from sae.model.hookpoints import HookPoint
from sae.model.language_model import LanguageModel
from sae.model.unembed import Promotion, nearest, token_logits
from sae.model.vocabulary import token_bytes
from sae.publish import parquet
from sae.publish.code_files import CodeFiles
from sae.publish.controls import CONTROLS, ControlSample, control_of, l0_of, sampled_code
from sae.stream.activations import Activations

BATCH_ROWS = 4096
RAGGED_ROWS = 2048  # of a code of varying length: a batch is as wide as its token with most latents
FEATURES_PER_TOKEN = 32  # kept of those that promote a token


class IndexConfig(Section):
    """What the feature store keeps."""

    build: bool = Field(
        default=True, description="Build the feature store; false: only train and evaluate, as for a large sweep."
    )
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
    memory_bytes: Count = Field(
        default=2_000_000_000,
        ge=1_000_000,
        description="Memory for the firings that are counted at a time; with less, the codes are read more often.",
    )
    controls: bool = Field(
        default=True,
        description="Also index random and principal directions on the same text, so that scores can be compared.",
    )
    keep_text: bool = Field(
        default=True,
        description="Keep whole documents in the store, so that a reader can go on beyond a context; false: contexts alone.",
    )
    token_latents: bool = Field(default=False, description="Also write every token's latents to Parquet.")


class _Encoder(NamedTuple):
    """A dictionary, or a control, whose code is stored: x [tokens, d_in] to (activations, latents) [tokens, width]."""

    name: str
    d_sae: int
    encode: Callable[[Tensor], tuple[Tensor, Tensor]]
    batch_rows: int = BATCH_ROWS


def _encode_stream(
    encoders: list[_Encoder],
    reads: tuple[HookPoint, ...],
    activations: Activations,
    n_contexts: int,
    *,
    folder: Path,
    progress: Progress,
) -> tuple[list[Codes], np.ndarray]:
    """(sparse codes of the first contexts by every encoder, which tokens were read [contexts, ctx_len]).

    Codes are memory-mapped; positions filtered out have no latents.
    """
    contexts, processes = activations.contexts, activations.processes
    total = n_contexts * contexts.ctx_len
    home = folder if processes.world_size == 1 else folder / str(processes.rank)
    files = [CodeFiles(home / encoder.name, total, encoder.d_sae) for encoder in encoders]
    is_read = np.zeros(total, bool)

    for g in range(activations.n_segments):
        first = g * activations.segment_contexts
        if first >= n_contexts:
            break
        segment = activations.segment(g)
        stream = segment.rows(reads)
        for x, places in zip(stream.split(BATCH_ROWS), segment.positions.split(BATCH_ROWS), strict=True):
            inside = places < total
            if not inside.any():
                break
            rows, read = x[inside.to(x.device)].float(), places[inside].numpy()
            is_read[read] = True
            for encoder, file in zip(encoders, files, strict=True):
                for start in range(0, len(read), encoder.batch_rows):
                    part = slice(start, start + encoder.batch_rows)
                    acts, indices = encoder.encode(rows[part])
                    file.write(read[part], indices.cpu().numpy(), acts.cpu().numpy())
        progress.update(min(first + activations.segment_contexts, n_contexts) * contexts.ctx_len, total)

    if processes.world_size > 1:
        is_read = np.any(processes.all_gather_objects(is_read), axis=0)
        parts = list(_own_tokens(activations, total))
        latents = [
            file.joined(folder / encoder.name, processes, parts) for encoder, file in zip(encoders, files, strict=True)
        ]
    else:
        latents = [file.latents() for file in files]

    ids, documents = contexts.ids[:n_contexts], contexts.documents[:n_contexts]
    codes = [Codes(ids, documents, *columns) for columns in latents]

    return codes, is_read.reshape(n_contexts, contexts.ctx_len)


def _own_tokens(activations: Activations, total: int) -> Iterator[slice]:
    """The tokens of the flat text, up to `total`, that this process encodes: one part of every segment."""
    length = activations.contexts.ctx_len
    for g in range(activations.n_segments):
        read = activations.contexts_of(g)
        yield slice(min(read.start * length, total), min(read.stop * length, total))


@torch.no_grad()
def index(
    sae: SparseAutoencoder,
    activations: Activations,
    lm: LanguageModel,
    config: IndexConfig,
    *,
    seed: int,
    folder: Path,
    scratch: Path,
    facts: dict[str, Any],
    progress: Progress,
    with_pages: bool = True,
) -> str:
    """Builds and publishes the context generation under `folder`/store; returns its file name.

    Without pages, a server renders them when they are asked for. Processes that share the activations encode their own contexts and count their own features; the first one joins
    both.
    """
    contexts, n_contexts = activations.contexts, _n_contexts(activations, config)
    progress.say(f"index: {budget(n_contexts * contexts.ctx_len, l0_of(sae, folder), sae.d_sae, config.memory_bytes)}")
    samples = _controls(sae, activations, folder, seed) if config.controls else {}
    encoders = [_encoder_of(sae), *map(_control_encoder, samples, samples.values())]
    codes, is_read = _encode_stream(
        encoders, sae.config.reads, activations, n_contexts, folder=scratch, progress=progress
    )
    if not codes[0].acts.size:
        progress.say(
            f"{sae.config.name} is dead: no latent fires on the text; its store holds features without contexts"
        )

    limits = _limits(config, seed)
    names, keys = contexts.document_names(), contexts.document_keys()
    corpus = corpus_of(codes[0], token_bytes(lm.tokenizer), names, document_keys=keys, is_read=is_read)
    hook = sae.config.writes[0]  # of several hook points the pages show the first
    width = len(activations.statistics(hook).centre)
    processes, shards = activations.processes, None
    known = scratch / f"directions-{processes.rank}-{facts.get('weights_sha256', '')[:16]}.npz"
    directions = _known_directions(known, lambda: _directions(sae.W_dec, width, lm, config, hook=hook))
    for (name, sample), code in zip(samples.items(), codes[1:], strict=True):
        rows = sample.control.W_dec[sample.features.to(sae.W_dec.device)]
        part = _directions(rows, width, lm, config, hook=hook)
        store = folder / "controls" / name / "store"
        write = partial(publish, store, corpus.with_codes(code), part, limits=limits, facts=facts, with_pages=False)
        processes.on_first(write)

    if processes.world_size > 1:
        shards = scratch / "shards"
        write_shard(shards, processes.rank, corpus, directions, limits=limits, features=processes.share(sae.d_sae))
        processes.barrier()

    def put_together() -> str:
        if config.token_latents:
            parquet.write_token_latents(folder / "token_latents.parquet", codes[0])
        store = folder / "store"
        return publish(store, corpus, directions, limits, facts=facts, shards=shards, with_pages=with_pages)

    return processes.on_first(put_together)


def _n_contexts(activations: Activations, config: IndexConfig) -> int:
    """How many contexts of the stream are indexed."""
    contexts = activations.contexts
    wanted = contexts.n_contexts if config.tokens is None else -(-config.tokens // contexts.ctx_len)
    return min(wanted, contexts.n_contexts)


def _limits(config: IndexConfig, seed: int) -> Limits:
    contexts = ContextLimits(config.top_contexts, config.contexts_per_stratum)
    return Limits(contexts, config.features_per_document, seed, config.memory_bytes, keep_text=config.keep_text)


def _encoder_of(sae: SparseAutoencoder) -> _Encoder:
    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        code = sae.encode(x)
        return code.top_acts, code.top_indices

    return _Encoder(".", sae.d_sae, encode, RAGGED_ROWS if sae.ragged else BATCH_ROWS)


def _controls(sae: SparseAutoencoder, activations: Activations, folder: Path, seed: int) -> dict[str, ControlSample]:
    k = l0_of(sae, folder)
    return {name: control_of(sae, name, activations, k, seed=seed, thinned=True) for name in CONTROLS}


def _control_encoder(name: str, sample: ControlSample) -> _Encoder:
    """The part of a control's code that is about its sampled features, numbered anew."""
    number = torch.full((sample.control.d_sae,), -1)
    number[sample.features] = torch.arange(len(sample.features))
    number = number.to(sample.control.b_dec.device)

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        code = sample.control.encode(x)
        return sampled_code(code.top_acts, code.top_indices, number)

    return _Encoder(f"control-{name}", len(sample.features), encode)


def _known_directions(path: Path, compute: Callable[[], Directions]) -> Directions:
    """Directions that an index of the same weights left beside its codes, or new ones: for wide dictionaries they take
    longer than the codes of a short text.
    """
    if path.exists():
        with np.load(path) as arrays:
            promotion = feature_rows.Promotion(
                *(arrays[f"promotion_{name}"] for name in feature_rows.Promotion._fields)
            )
            return Directions(*(arrays[name] for name in Directions._fields[:-1]), promotion=promotion)

    directions = compute()
    columns = {f"promotion_{name}": column for name, column in directions.promotion._asdict().items()}
    columns |= {name: getattr(directions, name) for name in Directions._fields[:-1]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **columns)  # pyright: ignore[reportArgumentType]
    return directions


def _directions(rows: Tensor, width: int, lm: LanguageModel, config: IndexConfig, *, hook: HookPoint) -> Directions:
    """What decoder rows say by themselves; their first `width` numbers are what they write at the hook point."""
    promotion = Promotion(FEATURES_PER_TOKEN)
    logits = token_logits(lm, hook, rows[:, :width], config.tokens_promoted, promotion=promotion)
    neighbours, cosines = nearest(rows, config.neighbours, lm.device)
    promoters = feature_rows.Promotion(*(t.numpy() for t in promotion.found()))
    return Directions(*(t.numpy() for t in (*logits, neighbours, cosines)), promotion=promoters)
