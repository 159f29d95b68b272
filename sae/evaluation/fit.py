"""Whether a dictionary from elsewhere fits the activations that it is given, and what it may want instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sae.architectures import Batch, SparseAutoencoder

GOOD_FVU = 0.9  # above it a dictionary explains next to nothing
BETTER = 0.5  # of the fvu as read: a reading that reaches it is worth telling
ROWS = 1024  # encoded at a time


class Fit(NamedTuple):
    """fvu = sum ||y - y_hat||^2 / sum ||y - mean y||^2 over rows of usual norm, and mean latents per token."""

    fvu: float
    l0: float

    @property
    def is_good(self) -> bool:
        """Whether the dictionary explains anything at all of its activations."""
        return self.fvu <= GOOD_FVU


class Changed(NamedTuple):
    """Rows as a dictionary may want them, and what turns its reconstruction back: x_hat * scale + shift."""

    x: Float[Tensor, "rows d"]
    shift: Float[Tensor, " *b"]
    scale: Float[Tensor, " *b"]


class Reading(NamedTuple):
    """Another way to give a dictionary its input, in words, and the fit that it has then."""

    words: str
    fit: Fit


@torch.no_grad()
def fit_of(
    sae: SparseAutoencoder, batch: Batch, change: Callable[[Float[Tensor, "rows d"]], Changed] | None = None
) -> Fit:
    """The fit on some rows, which `change` may change before they are encoded.

    A position whose norm is more than ten times the median counts for nothing: it would outweigh all others.
    """
    norms = batch.x.norm(dim=1)
    usual = norms <= 10 * norms.median()
    x, y = batch.x[usual], batch.y[usual]
    mean, error, n_latents = y.mean(0), 0.0, 0

    for rows, target in zip(x.split(ROWS), y.split(ROWS), strict=True):
        changed = change(rows) if change else _scaled(rows, 1.0)
        code = sae.encode(changed.x)
        y_hat = sae.decode(code, changed.x) * changed.scale + changed.shift
        error += float((target - y_hat).square().sum())
        n_latents += int((code.top_acts > 0).sum())

    spread = float((y - mean).square().sum())
    return Fit(error / spread if spread > 0 else float("inf"), n_latents / max(len(x), 1))


def readings_of(sae: SparseAutoencoder, batch: Batch) -> Iterator[Reading]:
    """How the dictionary fits if its input is scaled, shifted or normalised, as other libraries do before they encode."""
    x = batch.x
    norms = x.norm(dim=1)
    typical = float(norms[norms <= 10 * norms.median()].mean())
    scales = {
        "divided by its mean norm and multiplied by sqrt(d)": x.shape[1] ** 0.5 / typical,
        "divided by its mean norm": 1 / typical,
        "divided by sqrt(d)": x.shape[1] ** -0.5,
        "multiplied by sqrt(d)": x.shape[1] ** 0.5,
    }
    for words, factor in scales.items():
        yield Reading(f"its input {words}", fit_of(sae, batch, lambda rows, f=factor: _scaled(rows, f)))

    yield Reading("every token normalised to mean 0 and deviation 1", fit_of(sae, batch, _standardised))
    yield Reading("every token of norm sqrt(d)", fit_of(sae, batch, _of_one_norm))
    if sae.config.reads == sae.config.writes:
        shift = sae.b_dec if sae.centred else -sae.b_dec
        words = "its input not centred by b_dec" if sae.centred else "its input centred by b_dec"
        yield Reading(words, fit_of(sae, batch, lambda rows: _scaled(rows + shift, 1.0)))


def _scaled(x: Float[Tensor, "rows d"], factor: float) -> Changed:
    return Changed(x * factor, x.new_zeros(()), x.new_tensor(1 / factor))


def _standardised(x: Float[Tensor, "rows d"]) -> Changed:
    mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
    return Changed((x - mean) / deviation, mean, deviation)


def _of_one_norm(x: Float[Tensor, "rows d"]) -> Changed:
    norm = x.norm(dim=1, keepdim=True) / x.shape[1] ** 0.5
    return Changed(F.normalize(x, dim=1) * x.shape[1] ** 0.5, x.new_zeros(()), norm)
