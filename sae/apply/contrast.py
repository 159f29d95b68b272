"""Which features fire on more texts of one set than of another, how sure that is, and what the model does without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sae.apply.edit import EditPlan, FeatureEdit, edited
from sae.apply.text_codes import TextReader
from sae.errors import DataError
from sae.interpret.intervals import Interval, Z, mean

LEAST_TEXTS = 8
CONTROLS = 3
MOST_TEXTS = 50  # of each set on which features are removed: a whole pass of the model is the slow part


class Contrast(NamedTuple):
    """By feature [d_sae]: the share of texts of each set on which it fires, the log odds ratio with its 95 % interval, and
    the false discovery rate at which it differs.

    log odds = ln((a + 1/2)(n_b - b + 1/2) / ((n_a - a + 1/2)(b + 1/2))) for a of n_a texts and b of n_b (Haldane 1956), its
    interval from the sum of inverse counts (Woolf 1955). p is Fisher's exact one, q that of Benjamini and Hochberg 1995
    over the features that fire at all; NaN where a feature never fires.
    """

    share_a: Float[np.ndarray, " d_sae"]
    share_b: Float[np.ndarray, " d_sae"]
    log_odds: Float[np.ndarray, " d_sae"]
    low: Float[np.ndarray, " d_sae"]
    high: Float[np.ndarray, " d_sae"]
    q: Float[np.ndarray, " d_sae"]

    def ranked(self, side: int, q: float = 0.05) -> list[int]:
        """Features of a side (1: the first set, -1: the second) with a false discovery rate of at most `q`, by the end of
        the interval that is nearest to no difference.
        """
        certain = self.low if side > 0 else -self.high
        ids = np.flatnonzero((self.q <= q) & (certain > 0))
        return ids[np.argsort(-certain[ids], kind="stable")].tolist()


def contrast(fires_a: Bool[np.ndarray, "n d_sae"], fires_b: Bool[np.ndarray, "m d_sae"]) -> Contrast:
    """The contrast of two sets by which features fire on each text; raises `DataError` if a set is too small."""
    from scipy.stats import false_discovery_control

    n_a, n_b = len(fires_a), len(fires_b)
    if min(n_a, n_b) < LEAST_TEXTS:
        raise DataError(f"{n_a} and {n_b} texts; a contrast wants at least {LEAST_TEXTS} of each set.")

    a, b = fires_a.sum(0), fires_b.sum(0)
    cells = np.stack([a, n_a - a, b, n_b - b]) + 0.5
    log_odds = np.log(cells[0] * cells[3] / (cells[1] * cells[2]))
    half = Z * np.sqrt((1 / cells).sum(0))
    q = np.full(len(a), np.nan)
    fires = a + b > 0
    if fires.any():
        q[fires] = false_discovery_control(_fisher(a[fires], b[fires], n_a, n_b))

    return Contrast(a / n_a, b / n_b, log_odds, log_odds - half, high=log_odds + half, q=q)


def _fisher(a: np.ndarray, b: np.ndarray, n_a: int, n_b: int) -> np.ndarray:
    """Two-sided p of every pair of counts; each different pair is worked out once."""
    from scipy.stats import fisher_exact

    pairs, place = np.unique(np.stack([a, b], axis=1), axis=0, return_inverse=True)
    p = [fisher_exact([[x, n_a - x], [y, n_b - y]])[1] for x, y in pairs.tolist()]
    return np.minimum(np.array(p), 1.0)[place]


class Ablation(NamedTuple):
    """What removing features does to the loss on both sets, in nats per token, and the same for other features.

    `controls` are features of like firing rate, drawn at random: the mean over several draws.
    """

    features: list[int]
    a: Interval
    b: Interval
    control_a: Interval
    control_b: Interval


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
