"""`sae bench index`: codes of many tokens into a published context generation, from few tokens to many."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from feature_store.indexing.budget import budget
from feature_store.indexing.codes import Codes
from feature_store.indexing.contexts import ContextLimits
from feature_store.indexing.generation import MEMORY_BYTES, Directions, Limits, collect, corpus_of, publish
from sae.foundation.device import PeakMemory
from sae.publish.code_files import CodeFiles

BATCH = 32_768  # tokens drawn at a time
DOCUMENT_TOKENS = 500
NEIGHBOURS = 10


class Size(NamedTuple):
    """Latents, latents kept per token, tokens per context, size of the vocabulary, and the numbers of tokens to index."""

    latents: int
    k: int
    ctx_len: int
    vocabulary: int
    tokens: tuple[int, ...]
    memory_bytes: int = MEMORY_BYTES


USUAL = Size(32_768, 32, 128, 49_152, tokens=(250_000, 500_000, 1_000_000))


def random_codes(size: Size, n_tokens: int, folder: Path) -> Codes:
    """Codes in files on disk. Latents fire as unequally as real ones do: their frequencies fall as 1 / sqrt(rank)."""
    random = np.random.default_rng(0)
    n = n_tokens // size.ctx_len
    files = CodeFiles(folder, n * size.ctx_len, size.latents)

    for start in range(0, n * size.ctx_len, BATCH):
        tokens = np.arange(start, min(start + BATCH, n * size.ctx_len))
        part = (len(tokens), size.k)
        # The square of a uniform number has the density 1 / (2 sqrt(x)).
        drawn = np.sort((random.random(part) ** 2 * size.latents).astype(np.int64), axis=1)
        repeated = np.zeros(part, bool)
        repeated[:, 1:] = drawn[:, 1:] == drawn[:, :-1]
        files.write(tokens, drawn, np.where(repeated, 0, random.exponential(1, part)))

    ids = (random.random((n, size.ctx_len)) ** 4 * size.vocabulary).astype(np.uint16)
    documents = (np.arange(n * size.ctx_len) // DOCUMENT_TOKENS).astype(np.uint32).reshape(n, size.ctx_len)

    return Codes(ids, documents, *files.latents())


def _directions(size: Size) -> Directions:
    tokens = np.tile(np.arange(NEIGHBOURS), (size.latents, 1))
    values = np.zeros((size.latents, NEIGHBOURS), np.float32)
    return Directions(tokens, values, tokens, values, neighbours=tokens, neighbour_cosines=values)


def _vocabulary(size: Size) -> list[bytes]:
    return [b" word%d" % number for number in range(size.vocabulary)]


def measure(size: Size = USUAL) -> dict[str, Any]:
    """Seconds of the contexts alone and of the whole generation, and peak memory, for every number of tokens."""
    runs = []
    limits = ContextLimits(20, 3)

    for n_tokens in (2 * size.ctx_len * 64, *size.tokens):  # the first only compiles
        with tempfile.TemporaryDirectory() as folder:
            codes = random_codes(size, n_tokens, Path(folder))
            start = time.perf_counter()
            collect(codes, size.latents, limits, 0, n_tokens=codes.ids.size)
            contexts = time.perf_counter() - start
            names = [f"document {d}" for d in range(int(codes.documents.max()) + 1)]
            corpus = corpus_of(codes, _vocabulary(size), names, document_keys=np.arange(len(names), dtype=np.uint64))
            start = time.perf_counter()
            with PeakMemory() as memory:
                publish(
                    Path(folder) / "store",
                    corpus,
                    _directions(size),
                    Limits(limits, 64, 0, size.memory_bytes),
                    facts={},
                )
            whole = time.perf_counter() - start
            stored = sum(f.stat().st_size for f in (Path(folder) / "store").glob("*"))
        runs.append(
            {"tokens": codes.ids.size, "activations": codes.acts.size, "contexts_s": contexts}
            | {"whole_s": whole, "store_bytes": stored, "peak_bytes": memory.peak_bytes}
            | {"stated_bytes": budget(codes.ids.size, size.k, size.latents, size.memory_bytes).memory}
        )

    return {"size": size._asdict(), "runs": runs[1:]}


def plot(measured: dict[str, Any], path: Path) -> None:
    """Draws seconds and memory against tokens, with straight lines through the first measurement."""
    from sae.evaluation.plots import lines_through_first

    runs = measured["runs"]
    tokens = [run["tokens"] / 1e6 for run in runs]
    lines_through_first(
        tokens, "million tokens",
        {"whole index, s": [r["whole_s"] for r in runs], "contexts alone, s": [r["contexts_s"] for r in runs]},
        {"taken, GiB": [r["peak_bytes"] / 2**30 for r in runs], "stated, GiB": [r["stated_bytes"] / 2**30 for r in runs]},
        path=path,
    )  # fmt: skip


def table(measured: dict[str, Any]) -> str:
    """The measurements as a Markdown table, and how far the cost is from proportional to tokens."""
    lines = [
        "| tokens | contexts, million activations/s | whole index, s | tokens/s | MiB taken | MiB stated | store MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    runs = measured["runs"]

    for run in runs:
        rate = run["activations"] / run["contexts_s"] / 1e6
        lines.append(
            f"| {run['tokens']:,} | {rate:.1f} | {run['whole_s']:.1f} | {run['tokens'] / run['whole_s']:,.0f} "
            f"| {run['peak_bytes'] / 2**20:,.0f} | {run['stated_bytes'] / 2**20:,.0f} | {run['store_bytes'] / 2**20:.0f} |"
        )

    time_growth = (runs[-1]["whole_s"] / runs[0]["whole_s"]) / (runs[-1]["tokens"] / runs[0]["tokens"])
    return "\n".join([*lines, "", f"time per token, the last over the first: {time_growth:.2f} (1 is a straight line)"])
