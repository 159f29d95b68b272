"""Directions of activations that texts give: control vectors, property-weighted directions, and the latents in them."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.apply.text_codes import TextReader
from sae.errors import DataError
from sae.model.hookpoints import Place

TINY = 1e-12


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


class Parts(NamedTuple):
    """Directions [n, d] split: their part in the row space of W_out, their part in its null space, and the share of the squared
    norm that the second has [n].
    """

    row: Float[Tensor, "n d"]
    null: Float[Tensor, "n d"]
    null_share: Float[Tensor, " n"]


def split(directions: Float[Tensor, "n d"], w_out: Float[Tensor, "d_model d"]) -> Parts:
    """Both parts of every direction; the null space is what W_out maps to zero."""
    _, s, vh = torch.linalg.svd(w_out.double(), full_matrices=False)
    basis = vh[s > s.max() * max(w_out.shape) * torch.finfo(w_out.dtype).eps]
    row = ((directions.double() @ basis.T) @ basis).to(directions.dtype)
    null = directions - row
    return Parts(row, null, null.square().sum(1) / directions.square().sum(1).clamp_min(TINY))


def output_weight(place: Place) -> Float[Tensor, "d_model d"]:
    """The matrix through which what stands at the input of a linear module reaches the residual stream."""
    weight = place.module.get_parameter("weight").float()
    is_linear = isinstance(place.module, torch.nn.Linear)
    return weight if is_linear else weight.T  # Conv1D keeps it the other way round


def parts_at(reader: TextReader, direction: Float[Tensor, " d"]) -> Parts | None:
    """Both parts of a direction at an MLP's hidden layer or at the heads' outputs, by what leads from there; None elsewhere."""
    hook = reader.sae.config.writes[0]
    if hook.site not in ("mlp_hidden", "attn_z"):
        return None
    rows = direction.float()[None]
    return split(rows, output_weight(reader.harvester.places[hook]).to(rows))
