"""The decoder rows of a dictionary, read from its weights block by block, to compare them with a vector."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from safetensors import safe_open

from feature_store.dictionary_files import DictionaryCard

DECODER, BLOCK = "W_dec", 16_384


class NearRow(NamedTuple):
    """A feature, and the cosine of its decoder row with a vector."""

    feature: int
    cosine: float


def nearest_rows(folder: Path, card: DictionaryCard, vector: Float[np.ndarray, " width"], limit: int) -> list[NearRow]:
    """The features with the largest cosine; raises `ValueError` if the vector does not fit, or has no direction."""
    names = ("weights.safetensors",) if card.weights_files is None else tuple(card.weights_files)
    if not names:
        raise ValueError("vector: this dictionary has no weights here, only pages of its features")
    if len(vector) != card.d_out:
        raise ValueError(f"vector: {len(vector)} numbers; the rows of this dictionary have {card.d_out}")
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0:
        raise ValueError("vector: it has no direction")

    cosines = np.concatenate([_cosines(folder / name, vector / length) for name in names])
    best = np.argsort(-cosines, kind="stable")[:limit]
    return [NearRow(int(feature), float(cosines[feature])) for feature in best]


def _cosines(path: Path, direction: Float[np.ndarray, " width"]) -> Float[np.ndarray, " rows"]:
    cosines = []
    with safe_open(path, "numpy") as weights:
        rows = weights.get_slice(DECODER)
        n_rows = rows.get_shape()[0]
        for start in range(0, n_rows, BLOCK):
            block = rows[start : min(start + BLOCK, n_rows)].astype(np.float32)
            cosines.append(block @ direction / np.maximum(np.linalg.norm(block, axis=1), 1e-12))
    return np.concatenate(cosines)
