"""Data with known true features, and how many of them a dictionary recovers."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sae.architectures import SparseAutoencoder
from sae.evaluation.measures.stability import matched_cosines


class World(NamedTuple):
    """Unit directions [features, width] and how often each is active; x = sum of active ones times 1 to 2, plus a bias."""

    directions: Float[Tensor, "features width"]
    frequency: float
    bias: Float[Tensor, " width"]

    def sample(self, rows: int, generator: torch.Generator) -> Float[Tensor, "rows width"]:
        """Rows [rows, width]."""
        n = len(self.directions)
        active = torch.rand(rows, n, generator=generator) < self.frequency
        strength = 1 + torch.rand(rows, n, generator=generator)
        return (active * strength) @ self.directions + self.bias


def world(n_features: int, width: int, l0: float, seed: int) -> World:
    """Random directions, of which `l0` are active on average."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(n_features, width, generator=generator), dim=1)
    return World(directions, l0 / n_features, torch.randn(width, generator=generator))


@torch.no_grad()
def recovery(sae: SparseAutoencoder, truth: World) -> float:
    """MCC: mean cosine of the true directions with decoder rows, matched one to one (Hungarian); 1 if all are
    recovered.

    As in Lee et al. and SAELens' synthetic benchmarks: with cosines in place of correlations of activations, so that no
    samples are needed.
    """
    return float(matched_cosines(truth.directions, sae.W_dec.cpu()).mean())
