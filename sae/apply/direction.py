"""Directions of activations that texts give: control vectors, property-weighted directions, and the latents in them."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sae.errors import DataError


def difference_of_means(
    a: Float[np.ndarray, "n d_out"], b: Float[np.ndarray, "m d_out"]
) -> Float[np.ndarray, " d_out"]:
    """mean a - mean b: the control vector of representation engineering (Hojer et al. 2025, arXiv 2504.19483)."""
    return a.mean(0) - b.mean(0)


def principal_difference(
    a: Float[np.ndarray, "n d_out"], b: Float[np.ndarray, "n d_out"]
) -> Float[np.ndarray, " d_out"]:
    """The first principal direction of a_i - b_i of paired texts, pointing from b to a, as long as the mean difference."""
    differences = a - b
    unit = np.linalg.svd(differences, full_matrices=False)[2][0]
    along = float(differences.mean(0) @ unit)
    return unit * along


def weighted_direction(
    x: Float[np.ndarray, "n d_out"], property_: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " d_out"]:
    """sum_s w_s x_s - mean x with w_s the share of a property (entropy, loss) that text s has (EAST, arXiv 2406.00244).

    Raises `DataError` for a property that is negative or zero everywhere.
    """
    if (property_ < 0).any() or property_.sum() <= 0:
        raise DataError("a property that directions are weighted by must not be negative, nor zero everywhere.")
    weights = property_ / property_.sum()
    return weights @ x - x.mean(0)


class Decomposition(NamedTuple):
    """A direction as a sparse sum of decoder rows, and the share of its squared norm that the sum leaves."""

    features: list[int]
    weights: list[float]
    left: float


def decompose(
    direction: Float[np.ndarray, " d_out"], rows: Float[np.ndarray, "d_sae d_out"], n: int = 10
) -> Decomposition:
    """The `n` decoder rows that orthogonal matching pursuit (Pati et al. 1993) picks for a direction, strongest first."""
    from sklearn.linear_model import orthogonal_mp

    norm = float(np.linalg.norm(direction))
    if norm == 0:
        raise DataError("the direction is zero: both sets of texts have the same mean activation.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Orthogonal matching pursuit ended")  # fewer rows are enough
        weights = np.asarray(orthogonal_mp(rows.T.astype(np.float64), direction / norm, n_nonzero_coefs=n)) * norm
    picked = np.flatnonzero(weights)
    picked = picked[np.argsort(-np.abs(weights[picked]), kind="stable")]
    rest = direction - weights[picked] @ rows[picked]

    return Decomposition(picked.tolist(), weights[picked].tolist(), float((rest @ rest) / norm**2))
