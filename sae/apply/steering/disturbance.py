"""How much a direction disturbs a model, and how long it must be to disturb it by a given amount.

The disturbance is KL(plain || steered) in nats between the model's predictions after some prompts. Methods are compared at equal
disturbance, because a longer vector does more of everything (Shafran, Geiger and Geva 2025, arXiv 2506.10920, appendix).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sae.apply.edit import DirectionEdit, EditPlan, edited
from sae.apply.text_codes import TextReader
from sae.errors import DataError

HALVINGS, DOUBLINGS = 12, 14
FIRST = 1 / 64  # of the norm of an activation; the first length that is tried
CLOSE = 0.02  # of the wanted disturbance


class Prompts:
    """Prompts, the model's plain predictions after them, and the mean norm of the activation at their last tokens."""

    def __init__(self, reader: TextReader, texts: Sequence[str]):
        self.reader, self.texts = reader, list(texts)
        lm = reader.lm
        self.ids = [torch.tensor([lm.token_ids(text, reader.ctx_len)], device=lm.device) for text in texts]
        if any(ids.shape[1] < 2 for ids in self.ids):
            raise DataError("every prompt needs two tokens or more.")
        self.norm = float(torch.from_numpy(reader.activations(self.texts, "last")).norm(dim=1).mean())
        self._plain = self.predictions(EditPlan(()))

    @torch.no_grad()
    def predictions(self, plan: EditPlan) -> list[Float[Tensor, " vocabulary"]]:
        """Log-probabilities of the token after every prompt, under edits."""
        lm, out = self.reader.lm, []
        for ids in self.ids:
            with edited(lm, self.reader.sae, plan):
                logits = lm.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
            out.append(logits.log_softmax(0))
        return out

    def disturbance(self, plan: EditPlan) -> float:
        """KL(plain || steered) in nats, the mean over prompts."""
        pairs = zip(self._plain, self.predictions(plan), strict=True)
        return sum(float(F.kl_div(after, before, log_target=True, reduction="sum")) for before, after in pairs) / len(
            self.ids
        )


class Matched(NamedTuple):
    """The length of a direction, and the disturbance that it causes."""

    amount: float
    disturbance: float


def plan_of(direction: Float[Tensor, " d_out"], amount: float) -> EditPlan:
    """`amount` times the direction's unit vector added at every token but the first."""
    return EditPlan((DirectionEdit(F.normalize(direction, dim=0), "add", amount),))


def matched(prompts: Prompts, direction: Float[Tensor, " d_out"], wanted: float) -> Matched:
    """The length at which a direction disturbs the prompts by about `wanted` nats, found by doubling and halving.

    A direction that never does so, such as one in a null space, gets the longest that was tried.
    """
    low, high = 0.0, prompts.norm * FIRST
    reached = prompts.disturbance(plan_of(direction, high))
    for _ in range(DOUBLINGS):
        if reached >= wanted:
            break
        low, high = high, 2 * high
        reached = prompts.disturbance(plan_of(direction, high))
    if reached < wanted:
        return Matched(high, reached)

    best = Matched(high, reached)
    for _ in range(HALVINGS):
        if abs(best.disturbance - wanted) <= CLOSE * wanted:
            break
        middle = (low + high) / 2
        reached = prompts.disturbance(plan_of(direction, middle))
        best = min(best, Matched(middle, reached), key=lambda one: abs(one.disturbance - wanted))
        low, high = (low, middle) if reached > wanted else (middle, high)
    return best
