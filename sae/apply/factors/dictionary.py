"""Factors as a dictionary that everything else reads: decoder rows are the factors, a linear encoder stands in for the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.apply.factors.factorisation import Factors, factorise, weights_of
from sae.architectures import SparseAutoencoder, build
from sae.architectures.topk import TopKConfig
from sae.model.hookpoints import HookPoint

RIDGE = 1e-3  # of the mean of the squares of the inputs
MOST = 32  # factors that a token keeps
PARENTS = 4  # factors to one parent


class Fitted(NamedTuple):
    """A dictionary, and the share of the weights' variance that its encoder does not give, over the tokens that it was fit on."""

    sae: SparseAutoencoder
    unexplained: float


def as_dictionary(
    factors: Factors, batches: Callable[[], Iterable[Float[Tensor, "tokens d"]]], *, name: str, hook: HookPoint
) -> Fitted:
    """A TopK dictionary whose decoder rows are the factors.

    The weights of a token are argmin over g >= 0 of ||x - g F||^2, which no encoder of one layer gives; the encoder is the ridge
    regression of these weights on x with a constant, its positive part is kept. Sums over batches are all that is held.
    """
    rows = factors.rows
    rank, d = rows.shape
    xx = torch.zeros(d + 1, d + 1, device=rows.device)
    xg = torch.zeros(d + 1, rank, device=rows.device)
    squares = torch.zeros(rank, device=rows.device)
    for x in batches():
        g = weights_of(x, rows)
        one = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        xx, xg, squares = xx + one.T @ one, xg + one.T @ g, squares + g.square().sum(0)

    n = float(xx[-1, -1])
    ridge = RIDGE * xx.diagonal()[:-1].mean() * torch.eye(d + 1, device=rows.device)
    ridge[-1, -1] = 0
    solved = torch.linalg.solve(xx + ridge, xg)
    residual = squares - 2 * (solved * xg).sum(0) + (solved * (xx @ solved)).sum(0)
    variance = (squares - xg[-1].square() / n).sum()

    config = TopKConfig(name=name, hook=hook, d_sae=rank, k=min(MOST, rank))
    sae = build(config, d).to(rows.device)
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(solved[:-1])
        sae.b_enc.copy_(solved[-1])
    return Fitted(sae.eval(), float(residual.sum() / variance))


def parents_of(rows: Float[Tensor, "rank d"], seed: int = 0) -> list[int]:
    """The parent of every factor: the strongest of a quarter as many factors of the factors themselves (the paper's hierarchy)."""
    rank = max(1, len(rows) // PARENTS)
    upper = factorise(rows, rank, seed=seed)
    return weights_of(rows, upper.rows).argmax(1).tolist()
