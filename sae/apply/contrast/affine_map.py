"""A sparse affine map of latents that makes the activations of one set of texts look like those of another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

STEPS, RATE = 1000, 0.1


class AffineMap(NamedTuple):
    """T(z) = scale z + shift by latent [d_sae], and the distance of both sets before and after it.

    A latent with scale 1 and shift 0 is not touched: `support` lists the others, by falling decrease of distance.
    """

    scale: Float[np.ndarray, " d_sae"]
    shift: Float[np.ndarray, " d_sae"]
    before: Float[np.ndarray, " d_sae"]
    after: Float[np.ndarray, " d_sae"]

    @property
    def support(self) -> list[int]:
        touched = np.flatnonzero((self.scale != 1) | (self.shift != 0))
        return touched[np.argsort(-(self.before - self.after)[touched], kind="stable")].tolist()


def fit_map(
    source: Float[np.ndarray, "n d_sae"], target: Float[np.ndarray, "m d_sae"], penalty: float = 2.0
) -> AffineMap:
    """The map that minimises, latent by latent, W(T(source), target) + penalty (|scale - 1| + |shift|).

    W is the mean squared difference of sorted activations (squared 2-Wasserstein distance in one dimension) in units of
    the latent's spread in both sets. Proximal gradient steps with a cosine rate, as LinEAS (Rodriguez et al. 2025, arXiv
    2503.10679); we fit a dictionary's latents instead of neurons of several layers, so the latents do not depend on each
    other and the group penalty over layers falls away.
    """
    ranks = (np.arange(len(source)) + 0.5) / len(source)
    z = np.sort(source.astype(np.float64), axis=0)
    t = np.quantile(target.astype(np.float64), ranks, axis=0, method="hazen")
    unit = np.sqrt((np.var(source, axis=0) + np.var(target, axis=0)) / 2 + np.square(z.mean(0) - t.mean(0)) / 4)
    unit = np.where(unit > 0, unit, 1.0)
    z, t = z / unit, t / unit
    zz, zt, z1, t1 = (z * z).mean(0), (z * t).mean(0), z.mean(0), t.mean(0)
    scale, shift = np.ones_like(z1), np.zeros_like(z1)
    longest = 1 / (zz + 1)  # half the inverse curvature of both coordinates together

    for step in range(STEPS):
        rate = np.minimum(RATE * (1 + np.cos(np.pi * step / STEPS)) / 2, longest)
        slope = 2 * (scale * zz + shift * z1 - zt)
        offset = 2 * (scale * z1 + shift - t1)
        scale = 1 + _shrunk(scale - rate * slope / 2 - 1, rate * penalty / 2)
        shift = _shrunk(shift - rate * offset / 2, rate * penalty / 2)

    before = np.square(z - t).mean(0)
    after = np.square(scale * z + shift - t).mean(0)
    return AffineMap(scale, shift * unit, before, after)


def _shrunk(x: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The proximal operator of by |x|."""
    return np.sign(x) * np.maximum(np.abs(x) - by, 0)
