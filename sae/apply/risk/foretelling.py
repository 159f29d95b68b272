"""Which latents of a text foretell a score of it, such as the model's loss: partial least squares, held out, with a null."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from sae.errors import DataError
from sae.interpret.intervals import Interval

FOLDS, MOST_COMPONENTS, PERMUTATIONS, ROUNDS = 5, 10, 20, 1000
LEAST_TEXTS, LEAST_FIRING = 40, 5  # texts; texts on which a latent must fire


class Risk(NamedTuple):
    """How well latents foretell a score.

    `r2` is that of held-out texts, with an interval from resampled texts, at the number of components that did best within
    the training folds; `by_components` are the held-out R2 of every number. `null` are R2 of scores dealt out anew. The
    latents are those of the fit to all texts with the largest |weight| x spread; the weight is the change of the score for
    one more unit of the latent's mean activation.
    """

    r2: Interval
    by_components: list[float]
    null: list[float]
    components: int
    latents: list[int]
    weights: list[float]
    importance: list[float]
    predicted: Float[np.ndarray, " texts"]

    @property
    def p(self) -> float:
        """Share of the null that does as well, itself counted in."""
        return (1 + sum(value >= self.r2.value for value in self.null)) / (1 + len(self.null))


def foretell(means: csr_array, scores: Float[np.ndarray, " texts"], *, n_latents: int = 10, seed: int = 0) -> Risk:
    """Partial least squares (Wold 1975) from mean codes [texts, d_sae] to a score per text, as From Noise to Narrative
    (Suresh et al. 2025, arXiv 2509.06938) predicts hallucination scores.

    R2 = 1 - sum (y - y_hat)^2 / sum (y - y_train_mean)^2 over five folds, each predicted from the other four. Latents that
    fire on fewer than five texts are left out. Raises `DataError` for too few texts, or scores that are all alike.
    """
    n = len(scores)
    if n < LEAST_TEXTS:
        raise DataError(f"{n} texts with scores; at least {LEAST_TEXTS} are needed.")
    if np.ptp(scores) == 0:
        raise DataError("all scores are the same; there is nothing to foretell.")

    fires = np.asarray(means.astype(bool).sum(axis=0)).ravel()
    columns = np.flatnonzero(fires >= LEAST_FIRING)
    if not len(columns):
        raise DataError(f"no latent fires on {LEAST_FIRING} of the texts or more; give more or longer texts.")
    x = means[:, columns].toarray().astype(np.float64)
    y = scores.astype(np.float64)

    rng = np.random.default_rng(seed)
    folds = np.array_split(rng.permutation(n), FOLDS)
    most = min(MOST_COMPONENTS, len(columns), n - len(folds[0]) - 1)
    held_out = _held_out(x, y, folds, most)
    totals = _totals(y, folds)
    by_components = [1 - float(np.square(y - held_out.predicted[:, a]).sum() / totals.sum()) for a in range(most)]
    chosen = held_out.predicted[np.arange(n), held_out.components]
    null = []
    for _ in range(PERMUTATIONS):
        other = y[rng.permutation(n)]
        guess = _held_out(x, other, folds, most)
        error = np.square(other - guess.predicted[np.arange(n), guess.components]).sum()
        null.append(1 - float(error / _totals(other, folds).sum()))

    a = int(np.bincount(held_out.components).argmax())
    weights = _fit(x, y, a + 1)[:, -1]
    importance = np.abs(weights) * x.std(0)
    order = np.argsort(-importance, kind="stable")[:n_latents]
    r2 = _resampled(np.square(y - chosen), totals, rng)

    return Risk(
        r2=r2,
        by_components=by_components,
        null=null,
        components=a + 1,
        latents=columns[order].tolist(),
        weights=weights[order].tolist(),
        importance=importance[order].tolist(),
        predicted=chosen,
    )


class _HeldOut(NamedTuple):
    """Predictions [texts, components] by the number of components less one, and the number chosen for each text."""

    predicted: np.ndarray
    components: np.ndarray


def _held_out(x: np.ndarray, y: np.ndarray, folds: list[np.ndarray], most: int) -> _HeldOut:
    """Each fold predicted from the others; the number of components is chosen within those, on a fifth of them."""
    predicted, components = np.zeros((len(y), most)), np.zeros(len(y), int)
    for number, fold in enumerate(folds):
        rest = np.concatenate([other for place, other in enumerate(folds) if place != number])
        inner, tune = rest[: len(rest) * 4 // 5], rest[len(rest) * 4 // 5 :]
        tried = _predicted(x[inner], y[inner], x[tune], most)
        components[fold] = np.square(y[tune][:, None] - tried).sum(0).argmin()
        predicted[fold] = _predicted(x[rest], y[rest], x[fold], most)
    return _HeldOut(predicted, components)


def _predicted(x: np.ndarray, y: np.ndarray, new: np.ndarray, most: int) -> np.ndarray:
    return y.mean() + (new - x.mean(0)) @ _fit(x, y, most)


def _fit(x: np.ndarray, y: np.ndarray, most: int) -> np.ndarray:
    """Weights [latents, components] of 1, 2, ... components; one fit holds all of them, because they are nested."""
    from sklearn.cross_decomposition import PLSRegression

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "y residual is constant")  # fewer components explain all of it
        pls = PLSRegression(n_components=most).fit(x, y)
    by_component = pls.x_rotations_ * pls.y_loadings_[0]
    spread = x.std(0, ddof=1)

    return by_component.cumsum(1) * y.std(ddof=1) / np.where(spread > 0, spread, 1.0)[:, None]


def _totals(y: np.ndarray, folds: list[np.ndarray]) -> np.ndarray:
    """(y - mean of the training folds)^2 of every text."""
    out = np.zeros(len(y))
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(y)), fold)
        out[fold] = np.square(y[fold] - y[rest].mean())
    return out


def _resampled(errors: np.ndarray, totals: np.ndarray, rng: np.random.Generator) -> Interval:
    """R2 and its interval from resampled texts."""
    picks = rng.integers(0, len(errors), (ROUNDS, len(errors)))
    values = 1 - errors[picks].sum(1) / totals[picks].sum(1)
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(1 - float(errors.sum() / totals.sum()), float(low), float(high))
