"""95 % intervals hold the truth 93 to 97 % of the time, over many draws of many truths."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from sae.interpret.intervals import NOTHING, auc, balanced_accuracy, grouped_correlation, jackknife, proportion


def covered(found):
    inside = np.mean([low <= truth <= high for truth, (_, low, high) in found])
    assert 0.93 <= inside <= 0.97, inside


@pytest.mark.parametrize(("m", "n"), [(10, 20), (20, 20), (50, 50)])
def test_balanced_accuracy_and_proportions(m, n):
    rng = np.random.default_rng(0)
    found, single = [], []
    for p, q in rng.uniform(0.3, 0.95, (3000, 2)):
        a, b = proportion(rng.binomial(m, p), m), proportion(rng.binomial(n, q), n)
        found.append(((p + q) / 2, balanced_accuracy(a, b)))
        single.append((p, a))
    covered(found)
    covered(single)


@pytest.mark.parametrize(("m", "n"), [(10, 20), (20, 20), (50, 50)])
def test_auc(m, n):
    rng = np.random.default_rng(0)
    gaps = rng.uniform(0, 2, 2000)
    covered([(norm.cdf(gap / 2**0.5), auc(rng.normal(gap, 1, m), rng.normal(0, 1, n))) for gap in gaps])


def mean_of(x):
    return jackknife(x.mean(), (x.sum() - x) / (len(x) - 1))


def test_mean_and_correlation():
    rng = np.random.default_rng(0)
    covered([(1.0, mean_of(rng.normal(1, 2, 12))) for _ in range(2000)])
    found = []
    for rho in rng.uniform(0, 0.9, 1500):
        x, noise = rng.normal(size=(2, 10, 100))
        y = rho * x + (1 - rho**2) ** 0.5 * noise
        sums = np.stack([x.sum(1), (x * x).sum(1), y.sum(1), (y * y).sum(1), (x * y).sum(1)], axis=1)
        found.append((rho, grouped_correlation(sums, np.full(10, 100.0))))
        assert found[-1][1].value == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1])
    covered(found)


def test_nothing_to_count_is_not_a_number():
    empty = np.empty(0)
    for found in (
        proportion(0, 0),
        auc(empty, np.ones(3)),
        grouped_correlation(np.zeros((10, 5)), np.ones(10)),
    ):
        assert str(found) == str(NOTHING)
    assert auc(np.ones(2), np.zeros(3)).value == 1 and auc(np.zeros(4), np.zeros(3)).value == 0.5
