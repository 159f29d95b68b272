"""Semi-nonnegative matrix factorisation: activations as sums of few factors with weights that are never negative.

X ~ G F with G >= 0 [tokens, rank] and F of any sign [rank, d], of which each row keeps its largest numbers alone (Shafran,
Geiger and Geva 2025, arXiv 2506.10920; updates of Ding, Li and Jordan 2010). `factorise` is the paper's algorithm over all rows at
once; `StreamingFit` sees a batch at a time and keeps sums alone, so that its memory does not grow with the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

RIDGE = 1e-6
TINY = 1e-12
STEPS = 60  # updates of a batch's weights
IDLE = 1e-4  # of the mean weight; a factor that is used less begins anew


class Factors(NamedTuple):
    """Factors [rank, d] of norm 1, how much of the squares each carries [rank], and ||X - G F||^2 / ||X||^2 by pass."""

    rows: Float[Tensor, "rank d"]
    energy: Float[Tensor, " rank"]
    losses: list[float]


def strongest_only(rows: Float[Tensor, "rank d"], share: float) -> Float[Tensor, "rank d"]:
    """Each row with its ceil(share d) largest numbers in size; the others are 0."""
    n = max(1, -int(-share * rows.shape[1] // 1))
    if n >= rows.shape[1]:
        return rows
    top = rows.abs().topk(n, dim=1).indices
    return torch.zeros_like(rows).scatter(1, top, rows.gather(1, top))


def updated(
    g: Float[Tensor, "tokens rank"], p: Float[Tensor, "tokens rank"], q: Float[Tensor, "rank rank"]
) -> Float[Tensor, "tokens rank"]:
    """One multiplicative update of the weights, G sqrt((P+ + G Q-) / (P- + G Q+)), with P = X F^T and Q = F F^T.

    The error never rises, and what is not negative stays so.
    """
    above = p.clamp_min(0) + g @ (-q).clamp_min(0)
    below = (-p).clamp_min(0) + g @ q.clamp_min(0)
    return g * (above / (below + RIDGE)).sqrt()


def weights_of(
    x: Float[Tensor, "tokens d"], rows: Float[Tensor, "rank d"], steps: int = STEPS
) -> Float[Tensor, "tokens rank"]:
    """argmin over g >= 0 of ||x - g F||^2, by multiplicative updates from the positive part of the products."""
    p, q = x @ rows.T, rows @ rows.T
    g = p.clamp_min(0) + TINY
    for _ in range(steps):
        g = updated(g, p, q)
    return g


def factorise(
    x: Float[Tensor, "tokens d"], rank: int, share: float = 1.0, *, iterations: int = 200, seed: int = 0
) -> Factors:
    """The paper's algorithm: least squares for F, its strongest numbers, one update of G, `iterations` times.

    With share 1 the loss never rises. Starts at rows of x drawn at random.
    """
    rows = _first_rows(x, rank, seed)
    g = weights_of(x, rows, 10)
    total = float(x.square().sum()) or 1.0
    losses = []
    for _ in range(iterations):
        gram = g.T @ g + RIDGE * torch.eye(rank, dtype=x.dtype, device=x.device)
        rows = strongest_only(torch.linalg.solve(gram, g.T @ x), share)
        length = rows.norm(dim=1).clamp_min(TINY)
        rows, g = rows / length[:, None], g * length
        g = updated(g, x @ rows.T, rows @ rows.T)
        losses.append(float((x - g @ rows).square().sum()) / total)
    return Factors(rows, g.square().sum(0) / total, losses)


class StreamingFit:
    """Factors of activations that come in batches, with everything that a fit needs to go on after a stop.

    After each batch F solves the least squares of all that this and the former pass saw, from the sums of G^T G and G^T X
    alone (as in online dictionary learning, Mairal et al. 2009); sums of a former pass count half. A factor that is hardly used
    begins anew at the row that is explained worst, but in the last pass.
    """

    def __init__(self, rank: int, share: float, *, passes: int = 3, seed: int = 0):
        self.rank, self.share, self.passes, self.seed = rank, share, passes, seed
        self.n_passes = self.n_batches = self.n_seen = 0  # whole passes; batches of the present one; rows
        self.error = self.total = 0.0  # of the present pass
        self.losses: list[float] = []
        self.rows, self.gram, self.product = torch.zeros(0), torch.zeros(0), torch.zeros(0)
        self.energy = torch.zeros(rank)

    @property
    def loss(self) -> float:
        """||X - G F||^2 / ||X||^2 so far in the present pass."""
        return self.error / max(self.total, TINY)

    def see(self, x: Float[Tensor, "tokens d"]) -> None:
        """Takes in one batch."""
        if not len(self.rows):
            self.rows = strongest_only(_first_rows(x, self.rank, self.seed), self.share)
            self.gram, self.product = (torch.zeros(self.rank, n, device=x.device) for n in (self.rank, x.shape[1]))
        self.energy = self.energy.to(x.device)
        g = weights_of(x, self.rows)
        self.gram, self.product = self.gram + g.T @ g, self.product + g.T @ x
        rest = (x - g @ self.rows).square().sum(1)
        self.error, self.total = self.error + float(rest.sum()), self.total + float(x.square().sum())
        self.energy = self.energy + g.square().sum(0)
        self.rows = _solved(self.gram, self.product, self.rows, self.share)

        idle = self.energy <= IDLE * self.energy.mean()
        if self.n_passes < self.passes - 1 and idle.any():
            worst = rest.topk(int(idle.sum())).indices
            self.rows[idle] = F.normalize(strongest_only(x[worst], self.share), dim=1)
            self.gram[idle], self.gram[:, idle], self.product[idle] = 0, 0, 0
        self.n_batches += 1
        self.n_seen += len(x)

    def end_pass(self) -> None:
        """Ends a pass: the sums so far count half from now on."""
        self.losses.append(self.loss)
        self.energy = self.energy / max(self.total, TINY)
        self.gram, self.product = self.gram / 2, self.product / 2
        self.n_passes, self.n_batches = self.n_passes + 1, 0
        self.error = self.total = 0.0
        if self.n_passes < self.passes:
            self.energy = torch.zeros_like(self.energy)

    def factors(self) -> Factors:
        """What was found."""
        return Factors(self.rows, self.energy, self.losses)

    def state(self) -> dict[str, Float[Tensor, " ..."]]:
        """Everything that changes, as tensors."""
        numbers = [self.n_passes, self.n_batches, self.n_seen, self.error, self.total, *self.losses]
        return {
            "rows": self.rows, "gram": self.gram, "product": self.product, "energy": self.energy,
            "numbers": torch.tensor(numbers, dtype=torch.float64),
        }  # fmt: skip

    def resume(self, state: dict[str, Float[Tensor, " ..."]]) -> None:
        """Goes on where a fit of the same settings was that gave this `state`."""
        numbers = state["numbers"].tolist()
        self.n_passes, self.n_batches, self.n_seen = (int(number) for number in numbers[:3])
        self.error, self.total, self.losses = numbers[3], numbers[4], numbers[5:]
        self.rows, self.gram, self.product, self.energy = (state[n] for n in ("rows", "gram", "product", "energy"))


def factorise_stream(
    batches: Callable[[], Iterable[Float[Tensor, "tokens d"]]],
    fit: StreamingFit,
    *,
    tell: Callable[[StreamingFit], None] = lambda _fit: None,
) -> Factors:
    """The factors of activations that come in batches; `batches` begins a pass anew. A fit that was resumed goes on.

    `tell` hears of the fit after every batch.
    """
    while fit.n_passes < fit.passes:
        for x in islice(batches(), fit.n_batches, None):
            fit.see(x)
            tell(fit)
        fit.end_pass()
    return fit.factors()


def _first_rows(x: Tensor, rank: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    picked = (
        torch.randint(len(x), (rank,), generator=generator)
        if len(x) < rank
        else torch.randperm(len(x), generator=generator)[:rank]
    )
    return F.normalize(x[picked.to(x.device)], dim=1)


def _solved(gram: Tensor, product: Tensor, rows: Tensor, share: float) -> Tensor:
    """F of the sums, of norm 1; a factor that no token uses keeps its row."""
    ridge = RIDGE * gram.diagonal().mean().clamp_min(TINY)
    solved = torch.linalg.solve(gram + ridge * torch.eye(len(gram), device=gram.device), product)
    solved = strongest_only(solved, share)
    length = solved.norm(dim=1, keepdim=True)
    return torch.where(length > TINY, solved / length.clamp_min(TINY), rows)
