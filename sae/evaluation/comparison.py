"""Compares two dictionaries of one model: which features of one are found again in the other, split, merged, or alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from feature_store.results.comparison import KINDS, Comparison, Side, Twin
from sae.architectures import SparseAutoencoder
from sae.architectures.settings import Channel, batch_of
from sae.stream.activations import Activations

FOUND = 0.7  # cosine from which on a direction counts as the same
BLOCK = 4096  # decoder rows that are compared at a time
NUMBERS = 1 << 25  # of a dense code that is held at a time
PAIRS_DRAWN = 4096


class Nearest(NamedTuple):
    """For every row of a the row of b with the largest cosine, and the other way round."""

    of_a: Int[np.ndarray, " n"]
    cosine_a: Float[np.ndarray, " n"]
    of_b: Int[np.ndarray, " m"]
    cosine_b: Float[np.ndarray, " m"]


@torch.no_grad()
def nearest(a: Float[Tensor, "n width"], b: Float[Tensor, "m width"]) -> Nearest:
    """Largest cosines in both directions, a block of rows at a time, so that no n x m table is held."""
    a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
    of_a, cosine_a = [], []
    cosine_b, of_b = (
        torch.full((len(b),), -2.0, device=b.device),
        torch.zeros(len(b), dtype=torch.long, device=b.device),
    )
    for start in range(0, len(a), BLOCK):
        cosines = a[start : start + BLOCK] @ b.T
        best, place = cosines.max(1)
        of_a.append(place)
        cosine_a.append(best)
        column_best, row = cosines.max(0)
        of_b = torch.where(column_best > cosine_b, row + start, of_b)
        cosine_b = torch.maximum(cosine_b, column_best)

    columns = (torch.cat(of_a), torch.cat(cosine_a), of_b, cosine_b)
    return Nearest(*(column.cpu().numpy() for column in columns))


def kinds_of(
    best: Int[np.ndarray, " n"],
    cosine: Float[np.ndarray, " n"],
    best_of_other: Int[np.ndarray, " m"],
    cosine_of_other: Float[np.ndarray, " m"],
    *,
    alive: Bool[np.ndarray, " n"],
    bound: float = FOUND,
) -> Int[np.ndarray, " n"]:
    """The kind of every feature, as an index into `KINDS`.

    dead: it never fires. alone: no feature of the other has a cosine of `bound`. split: it is the nearest of two or more
    features of the other, each with that cosine. merged: so is its own nearest, of two or more features here. matched: both
    are each other's nearest. near: found, but its nearest has a nearer one here.
    """
    covers = np.bincount(best_of_other[cosine_of_other >= bound], minlength=len(best))
    covered_by = np.bincount(best[cosine >= bound], minlength=len(best_of_other))
    is_mutual = best_of_other[best] == np.arange(len(best))
    names = np.select(
        [~alive, cosine < bound, covers > 1, covered_by[best] > 1, is_mutual],
        [KINDS.index(kind) for kind in ("dead", "alone", "split", "merged", "matched")],
        KINDS.index("near"),
    )
    return names


def random_cosine(b: Float[Tensor, "m width"], seed: int) -> float:
    """The 95 % quantile of the largest cosine of random directions, with the covariance of b's rows, with rows of b."""
    generator = torch.Generator().manual_seed(seed)
    rows = b.float().cpu()
    weights = torch.randn(BLOCK, len(rows), generator=generator)
    return float(np.quantile(nearest(weights @ (rows - rows.mean(0)), rows).cosine_a, 0.95))


class Firing(NamedTuple):
    """What was seen of two dictionaries on the same tokens."""

    alive_a: Bool[np.ndarray, " n"]
    alive_b: Bool[np.ndarray, " m"]
    correlations: list[Float[np.ndarray, " _pairs"]]  # of each list of pairs
    tokens: int


Rows = dict[Channel, Float[Tensor, "tokens _width"]]


@torch.no_grad()
def firing(
    rows: Iterable[Rows],
    pair: tuple[SparseAutoencoder, SparseAutoencoder],
    pairs: list[tuple[Int[np.ndarray, " _pairs"], Int[np.ndarray, " _pairs"]]],
) -> Firing:
    """Pearson correlation of the activations of pairs (feature of a, feature of b) over all tokens.

    nan where one of both does not vary. Sums are kept in float64.
    """
    sums = [torch.zeros(2, sae.d_sae, dtype=torch.float64) for sae in pair]
    products = [torch.zeros(len(a), dtype=torch.float64) for a, _ in pairs]
    tokens = 0
    for part in rows:
        codes = [_dense_code(sae, part).double() for sae in pair]
        tokens += len(codes[0])
        for total, code in zip(sums, codes, strict=True):
            total += torch.stack([code.sum(0), code.square().sum(0)]).cpu()
        for product, (a, b) in zip(products, pairs, strict=True):
            product += (codes[0][:, a] * codes[1][:, b]).sum(0).cpu()

    means = [total[0] / max(tokens, 1) for total in sums]
    deviations = [
        (t[1] / max(tokens, 1) - mean.square()).clamp(min=0).sqrt() for t, mean in zip(sums, means, strict=True)
    ]
    correlations = [
        ((product / max(tokens, 1) - means[0][a] * means[1][b]) / (deviations[0][a] * deviations[1][b])).numpy()
        for product, (a, b) in zip(products, pairs, strict=True)
    ]
    alive = [(total[1] > 0).numpy() for total in sums]
    return Firing(alive[0], alive[1], correlations, tokens=tokens)


def _dense_code(sae: SparseAutoencoder, rows: Rows) -> Float[Tensor, "tokens d_sae"]:
    """The code of rows as a dense table."""
    batch = batch_of(sae.config, rows)
    code = sae.encode(batch.x, batch.gradient)
    dense = torch.zeros(len(batch.x), sae.d_sae, device=batch.x.device)
    return dense.scatter_add_(1, code.top_indices.long(), code.top_acts.float())


def rows_of(held_out: Activations, tokens: int, widest: int) -> Iterator[Rows]:
    """Held-out rows of every channel, so many at a time that a dense code of `widest` latents stays small."""
    size, n = max(1, NUMBERS // widest), 0
    for g in range(held_out.n_segments):
        segment = held_out.segment(g)
        for start in range(0, len(segment.positions), size):
            if n >= tokens:
                return
            part = {channel: rows[start : start + size] for channel, rows in segment.x.items()}
            n += min(size, len(segment.positions) - start)
            yield part


class Dictionary(NamedTuple):
    """A loaded dictionary with its id and the hash of its weights."""

    id: str
    weights_sha256: str
    sae: SparseAutoencoder


def compare(a: Dictionary, b: Dictionary, rows: Iterable[Rows], *, twin: Dictionary | None, seed: int) -> Comparison:
    """The comparison of a with b; `twin` is a dictionary like a of another seed, whose share of matches is beside it."""
    near = nearest(a.sae.W_dec, b.sae.W_dec)
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, a.sae.d_sae, PAIRS_DRAWN), rng.integers(0, b.sae.d_sae, PAIRS_DRAWN))
    pairs = [(np.arange(a.sae.d_sae), near.of_a), (near.of_b, np.arange(b.sae.d_sae)), drawn]
    seen = firing(rows, (a.sae, b.sae), pairs)
    alive = (seen.alive_a, seen.alive_b) if seen.tokens else (np.ones(a.sae.d_sae, bool), np.ones(b.sae.d_sae, bool))

    kinds_a = kinds_of(near.of_a, near.cosine_a, near.of_b, near.cosine_b, alive=alive[0])
    kinds_b = kinds_of(near.of_b, near.cosine_b, near.of_a, near.cosine_a, alive=alive[1])
    by_chance = seen.correlations[2][~np.isnan(seen.correlations[2])]
    return Comparison(
        format_version=Comparison.current_version,
        this=_side(a, near.of_a, near.cosine_a, seen.correlations[0], kind=kinds_a),
        other=_side(b, near.of_b, near.cosine_b, seen.correlations[1], kind=kinds_b),
        found=FOUND,
        random_cosine=random_cosine(b.sae.W_dec, seed),
        random_correlation=float(np.quantile(by_chance, 0.95)) if len(by_chance) else None,
        tokens=seen.tokens,
        twin=None if twin is None else Twin(dictionary=twin.id, matched=_share_matched(a.sae, twin.sae, alive[0])),
    )


def _share_matched(a: SparseAutoencoder, b: SparseAutoencoder, alive: Bool[np.ndarray, " n"]) -> float:
    near = nearest(a.W_dec, b.W_dec)
    kinds = kinds_of(near.of_a, near.cosine_a, near.of_b, near.cosine_b, alive=alive)
    return float((kinds == KINDS.index("matched")).sum() / max(alive.sum(), 1))


def _side(
    one: Dictionary,
    best: Int[np.ndarray, " n"],
    cosine: Float[np.ndarray, " n"],
    correlation: Float[np.ndarray, " n"],
    *,
    kind: Int[np.ndarray, " n"],
) -> Side:
    return Side(
        dictionary=one.id,
        weights_sha256=one.weights_sha256,
        nearest=best.tolist(),
        cosine=np.round(cosine.astype(np.float64), 4).tolist(),
        correlation=[None if c != c else c for c in np.round(correlation, 4).tolist()],
        kind=kind.tolist(),
    )
