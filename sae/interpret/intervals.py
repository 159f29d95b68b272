"""Thresholds, and 95 % intervals of the figures that scores consist of; tests check their coverage by simulation."""

from __future__ import annotations

from math import atanh, nan, sqrt, tanh
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real

Z = 1.959964


class Interval(NamedTuple):
    """A value with the ends of its 95 % interval; all NaN if there is nothing to count."""

    value: float
    low: float
    high: float


NOTHING = Interval(nan, nan, nan)


def proportion(hits: float, n: float) -> Interval:
    """hits / n with Wilson's interval (Wilson 1927); `n` may be an effective number of trials."""
    if n <= 0:
        return NOTHING
    p = hits / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


def balanced_accuracy(positive: Interval, negative: Interval) -> Interval:
    """(true positive rate + true negative rate) / 2, its interval recovered from theirs.

    Newcombe 1998, method 10: low = value - sqrt(sum (p_i - low_i)^2) / 2, and likewise high.
    """
    value = (positive.value + negative.value) / 2
    below = sqrt((positive.value - positive.low) ** 2 + (negative.value - negative.low) ** 2) / 2
    above = sqrt((positive.high - positive.value) ** 2 + (negative.high - negative.value) ** 2) / 2
    return Interval(value, value - below, value + above)


def auc(positive: Real[np.ndarray, " n_positive"], negative: Real[np.ndarray, " n_negative"]) -> Interval:
    """P(score of a positive > that of a negative) + P(equal) / 2, with the interval of Newcombe 2006, method 5.

    The ends solve |value - t| = z sd(t) with the variance of Hanley and McNeil 1982 at n = (n_pos + n_neg) / 2.
    """
    m, n = len(positive), len(negative)
    if m == 0 or n == 0:
        return NOTHING

    order = np.sort(negative)
    below, upto = np.searchsorted(order, positive, "left"), np.searchsorted(order, positive, "right")
    value = float((below + upto).sum()) / (2 * m * n)
    half = (m + n) / 2 - 1

    def variance(t: float) -> float:
        return t * (1 - t) * (1 + half * (1 - t) / (2 - t) + half * t / (1 + t)) / (m * n)

    def end(sign: int) -> float:
        inside, outside = value, 1.0 if sign > 0 else 0.0
        for _ in range(40):
            middle = (inside + outside) / 2
            if abs(middle - value) > Z * sqrt(variance(middle)):
                outside = middle
            else:
                inside = middle
        return (inside + outside) / 2

    return Interval(value, end(-1), end(1))


def best_threshold(positive: Real[np.ndarray, " n_positive"], negative: Real[np.ndarray, " n_negative"]) -> float:
    """The threshold with the best balanced accuracy, midway between two neighbouring scores; of equally good ones the
    middle.
    """
    values = np.unique(np.concatenate([positive, negative]))
    edges = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2])
    recall = 1 - np.searchsorted(np.sort(positive), edges, "right") / len(positive)
    silent = np.searchsorted(np.sort(negative), edges, "right") / len(negative)
    best = np.flatnonzero(recall + silent >= (recall + silent).max() - 1e-12)
    return float(edges[best[len(best) // 2]])


def mean(values: Float[np.ndarray, " n"]) -> Interval:
    """The mean of independent values with Student's interval; the value alone if there is one."""
    from scipy.special import stdtrit

    n = len(values)
    if n == 0:
        return NOTHING
    value = float(np.mean(values))
    if n == 1:
        return Interval(value, nan, nan)
    half = float(stdtrit(n - 1, 0.975)) * float(np.std(values, ddof=1)) / sqrt(n)
    return Interval(value, value - half, value + half)


def jackknife(value: float, left_out: Float[np.ndarray, " groups"]) -> Interval:
    """A value with the interval of the values that come out when each of its groups is left out in turn (Tukey 1958)."""
    from scipy.special import stdtrit

    n = len(left_out)
    deviation = sqrt((n - 1) / n * float(((left_out - left_out.mean()) ** 2).sum()))
    half = float(stdtrit(n - 1, 0.975)) * deviation
    return Interval(float(value), float(value) - half, float(value) + half)


def grouped_correlation(sums: Float[np.ndarray, "groups 5"], sizes: Real[np.ndarray, " groups"]) -> Interval:
    """Pearson's correlation from sums [groups, 5] of a, a^2, p, p^2, a p, its interval by leaving out one group.

    Jackknife on Fisher's scale with Student's t of groups - 1 degrees of freedom, so that what documents share
    widens the interval. `sizes` counts the tokens of each group.
    """
    value = _correlation(sums.sum(0), float(sizes.sum()))
    if value != value:
        return NOTHING

    left_out = np.array(
        [_correlation(sums.sum(0) - s, float(sizes.sum() - n)) for s, n in zip(sums, sizes, strict=True)]
    )
    if np.isnan(left_out).any() or abs(value) >= 1 or (np.abs(left_out) >= 1).any():
        return Interval(value, nan, nan)

    on_fisher_scale = jackknife(atanh(value), np.arctanh(left_out))

    return Interval(value, tanh(on_fisher_scale.low), tanh(on_fisher_scale.high))


def _correlation(sums: np.ndarray, n: float) -> float:
    a, aa, p, pp, ap = sums.tolist()
    spread = (aa - a * a / n) * (pp - p * p / n) if n > 0 else 0.0
    return min(1.0, (ap - a * p / n) / sqrt(spread)) if spread > 1e-20 else nan
