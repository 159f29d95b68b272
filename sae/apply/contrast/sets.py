"""Which features fire on more texts of one set than of another, and how sure that is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from sae.errors import DataError
from sae.interpret.intervals import Z

LEAST_TEXTS = 8


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
