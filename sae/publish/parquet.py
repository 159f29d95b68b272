"""A dictionary's evidence as Parquet with real lists, for analysts and for download."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_store import queries
from feature_store.atomic import writing
from feature_store.indexing.codes import Codes
from feature_store.packing import WINDOW, Pack, dense_acts
from feature_store.records import Concept, FeatureRow
from feature_store.store import Store

FEATURES_PER_GROUP = 512


def write_features(path: Path, store: Store) -> None:
    """One row per feature: counts, label, histogram, promoted and suppressed tokens, neighbours."""
    features = queries.all_features(store)
    columns: dict[str, list[Any]] = {n.name: [getattr(f.row, n.name) for f in features] for n in fields(FeatureRow)}
    columns["histogram"] = [f.histogram for f in features]
    for name in ("promoted", "suppressed"):
        columns[name] = [[store.vocabulary.shown(t) for t, _ in getattr(f, name)] for f in features]
        columns[f"{name}_logits"] = [[v for _, v in getattr(f, name)] for f in features]

    columns["neighbours"] = [[n for n, _ in f.neighbours] for f in features]
    columns["neighbour_cosines"] = [[c for _, c in f.neighbours] for f in features]
    with writing(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def write_contexts(path: Path, store: Store) -> None:
    """One row per stored window: its place, token ids and activations as lists, and its text."""
    total = queries.counts(store)["features"]
    with writing(path) as temporary, ExitStack() as stack:
        writer = None
        for first in range(0, total, FEATURES_PER_GROUP):
            table = _context_table(store, queries.packs(store, first, first + FEATURES_PER_GROUP))
            writer = writer or stack.enter_context(pq.ParquetWriter(temporary, table.schema, compression="zstd"))
            writer.write_table(table)


def write_concepts(path: Path, concepts: list[Concept]) -> None:
    """One row per concept: its name, its parent, coverage, purity and the list of its features."""
    columns = {field.name: [getattr(c, field.name) for c in concepts] for field in fields(Concept)}
    types = {"parent": pa.uint32(), "features": pa.list_(pa.uint32())}
    arrays = {name: pa.array(values, types.get(name)) for name, values in columns.items()}
    with writing(path) as temporary:
        pq.write_table(pa.table(arrays), temporary, compression="zstd")


def _context_table(store: Store, packs: list[tuple[int, Pack]]) -> pa.Table:
    windows = np.concatenate([pack.windows for _, pack in packs])
    ids = np.concatenate([pack.token_ids for _, pack in packs])
    offsets = np.concatenate([[0], np.cumsum(windows["length"], dtype=np.int64)]).astype(np.int32)
    columns: dict[str, Any] = {"feature": np.repeat([f for f, _ in packs], [len(p.windows) for _, p in packs])}
    columns |= {name: windows[name] for name in WINDOW.names or () if name not in ("length", "n_acts")}
    columns["document_name"] = [store.document_names.get(d, "") for d in windows["document"].tolist()]
    columns["token_ids"] = pa.ListArray.from_arrays(offsets, pa.array(ids))
    acts = np.concatenate([dense_acts(pack) for _, pack in packs])
    columns["acts"] = pa.ListArray.from_arrays(offsets, pa.array(acts))
    pieces = [store.vocabulary.tokens.get(t, b"") for t in ids.tolist()]
    bounds = zip(offsets.tolist(), offsets[1:].tolist(), strict=False)
    columns["text"] = [b"".join(pieces[a:b]).decode("utf-8", "replace") for a, b in bounds]

    return pa.table(columns)


def write_token_latents(path: Path, codes: Codes) -> None:
    """Every token's latents and activations as Parquet: context, position, token, latents[], acts[]."""
    schema = pa.schema([
        ("context", pa.uint32()), ("position", pa.uint32()), ("token", pa.uint32()),
        ("latents", pa.list_(pa.uint32())), ("acts", pa.list_(pa.float32())),
    ])  # fmt: skip
    with writing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for c in range(len(codes.ids)):
            starts = codes.starts_of(slice(c, c + 1))
            part, offsets = slice(starts[0], starts[-1]), (starts - starts[0]).astype(np.int32)
            lists = (codes.indices[part].astype(np.uint32), codes.acts[part])
            latents, acts = (pa.ListArray.from_arrays(offsets, pa.array(values)) for values in lists)
            n_tokens = codes.ids.shape[1]
            columns = [[c] * n_tokens, range(n_tokens), codes.ids[c].astype(np.uint32), latents, acts]
            writer.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema=schema))
