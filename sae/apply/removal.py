"""What the model loses on some texts without some features, beside others that fire as often."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.apply.edit import EditPlan, FeatureEdit, edited
from sae.apply.text_codes import TextReader
from sae.errors import DataError
from sae.interpret.intervals import Interval, mean
from sae.model.hookpoints import Place

CONTROLS = 3
MOST_TEXTS = 50  # of each set on which features are removed: a whole pass of the model is the slow part


class Ablation(NamedTuple):
    """What removing features does to the loss on both sets, in nats per token, and the same for other features.

    `controls` are features of like firing rate, drawn at random: the mean over several draws.
    """

    features: list[int]
    a: Interval
    b: Interval
    control_a: Interval
    control_b: Interval


def check_removable(reader: TextReader) -> None:
    """Raises `ConfigError`, before anything is read, for a dictionary whose latents cannot be removed."""
    EditPlan(()).check(reader.sae)


def ablation(
    reader: TextReader,
    texts: tuple[list[str], list[str]],
    features: list[int],
    rate: Float[np.ndarray, " d_sae"],
    *,
    seed: int,
    step: Callable[[], None] = lambda: None,
) -> Ablation:
    """Removes features everywhere and looks at the mean loss of the first 50 texts of each set; `step` is called after each
    pass of both.

    The protocol of MoTE's functional token resonance imaging, on latents instead of experts: the baseline are as many
    features with the nearest firing rates, drawn anew `CONTROLS` times.
    """
    rng = np.random.default_rng(seed)
    texts = texts[0][:MOST_TEXTS], texts[1][:MOST_TEXTS]
    clean = [reader.losses(part) for part in texts]
    step()

    def change(chosen: list[int]) -> list[np.ndarray]:
        plan = EditPlan(tuple(FeatureEdit(feature, "ablate") for feature in chosen))
        with edited(reader.lm, reader.sae, plan):
            changed = [reader.losses(part) - before for part, before in zip(texts, clean, strict=True)]
        step()
        return changed

    true = change(features)
    others = [change(matched(features, rate, rng)) for _ in range(CONTROLS)]
    control = [np.mean([draw[side] for draw in others], axis=0) for side in (0, 1)]

    return Ablation(features, mean(true[0]), mean(true[1]), control_a=mean(control[0]), control_b=mean(control[1]))


def matched(features: list[int], rate: Float[np.ndarray, " d_sae"], rng: np.random.Generator) -> list[int]:
    """As many other features, each drawn from the ten whose firing rates are nearest to that of one of `features`."""
    free = np.flatnonzero(rate > 0)
    free = free[~np.isin(free, features)]
    if len(free) < len(features):
        raise DataError(
            f"only {len(free)} other features fire on these texts; {len(features)} are wanted as a control."
        )

    chosen: list[int] = []
    for feature in features:
        distance = np.abs(rate[free] - rate[feature])
        near: Int[np.ndarray, " near"] = free[np.argsort(distance, kind="stable")[:10]]
        chosen.append(int(rng.choice(near)))
        free = free[free != chosen[-1]]
    return chosen


@contextmanager
def parts_removed(
    place: Place, positions: Int[Tensor, " n"], parts: Float[Tensor, "n width"], length: int
) -> Iterator[None]:
    """Inside the block a pass over n + 1 copies of one context loses part i at position i in row i; the last row stays whole."""
    n = len(positions)

    def take_away(x: Tensor) -> Tensor:
        out = x.reshape(n + 1, length, -1).clone()
        out[torch.arange(n, device=x.device), positions] -= parts.to(x.dtype)
        return out.reshape(x.shape)

    handle = place.watch(take_away)
    try:
        yield
    finally:
        handle.remove()
