"""One formula for every metric name."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor


class FvuMeter:
    """fvu = sum ||x - x_hat||^2 / sum ||x - mean x||^2 over everything added; sums in float64.

    The mean is over all rows added (the global mean), so batches may be of any size and order.
    """

    def __init__(self, d_model: int, device: torch.device | str = "cpu"):
        self.error = torch.zeros((), dtype=torch.float64, device=device)
        self.square = torch.zeros((), dtype=torch.float64, device=device)
        self.total = torch.zeros(d_model, dtype=torch.float64, device=device)
        self.rows = 0

    @torch.no_grad()
    def add(self, x: Float[Tensor, "rows d_model"], x_hat: Float[Tensor, "rows d_model"]) -> None:
        """Adds rows x [rows, d_model] and their reconstruction."""
        self.add_sums(*batch_sums(x, x_hat), len(x))

    @torch.no_grad()
    def add_sums(
        self, error: Float[Tensor, ""], square: Float[Tensor, ""], total: Float[Tensor, " d_model"], rows: int
    ) -> None:
        """Adds what `batch_sums` gives of a batch."""
        self.error += error
        self.square += square
        self.total += total
        self.rows += rows

    def value(self) -> float:
        """The fraction of variance unexplained; nan before two different rows."""
        variance = self.square - self.total.square().sum() / max(self.rows, 1)
        return float(self.error / variance) if variance > 0 else float("nan")


class BatchSums(NamedTuple):
    """Sums over the rows of a batch, in float64: ||x - x_hat||^2, ||x||^2, and the rows x [d] themselves."""

    square_error: Float[Tensor, ""]
    square: Float[Tensor, ""]
    total: Float[Tensor, " d"]


@torch.no_grad()
def batch_sums(x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"]) -> BatchSums:
    """The sums that an fvu needs of a batch x [n, d] and its reconstruction."""
    wide = torch.float64

    def of_squares(rows: Tensor) -> Tensor:
        # Row by row: torch splits one long sum among threads, and its last digit depends on how many there are.
        return rows.square().sum(1, dtype=wide).sum()

    return BatchSums(of_squares(x - x_hat), of_squares(x), x.sum(0, dtype=wide))


def normalised_mse(x: Float[Tensor, "tokens d"], x_hat: Float[Tensor, "tokens d"]) -> Float[Tensor, " tokens"]:
    """||x - x_hat||^2 / ||x||^2 of every token, [tokens]."""
    return (x - x_hat).square().sum(1) / x.square().sum(1).clamp_min(1e-30)


def l0(top_acts: Float[Tensor, "tokens width"]) -> Float[Tensor, ""]:
    """Mean number of non-zero latents per token."""
    return (top_acts > 0).sum(1).float().mean()


def density(fired: Int[Tensor, " d_sae"], n_tokens: int) -> Float[Tensor, " d_sae"]:
    """Share of tokens on which each latent's activation is above 0; densities sum to l0."""
    return fired.double() / n_tokens


def loss_recovered(clean: float, spliced: float, ablated: float) -> float:
    """(CE_ablated - CE_spliced) / (CE_ablated - CE_clean): 1 for the identity, 0 for the ablation."""
    return (ablated - spliced) / (ablated - clean) if ablated != clean else float("nan")


def spearman(a: Real[Tensor, " n"], b: Real[Tensor, " n"]) -> float:
    """Pearson correlation of the ranks of two vectors; ties share their mean rank."""
    from scipy.stats import spearmanr

    return float(spearmanr(a.numpy(), b.numpy())[0])  # pyright: ignore[reportArgumentType]


def geometric_median(rows: Float[Tensor, "n d"], iterations: int = 50) -> Float[Tensor, " d"]:
    """The point with the least sum of distances to `rows`, by Weiszfeld's iteration; outliers hardly move it."""
    centre = rows.median(dim=0).values
    for _ in range(iterations):
        weights = 1 / (rows - centre).norm(dim=1).clamp_min(1e-8)
        centre = (weights[:, None] * rows).sum(0) / weights.sum()
    return centre
