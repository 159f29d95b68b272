"""The directions that are compared for a concept: a dictionary's feature, the difference of means, and random controls."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.apply.concept import best_feature
from sae.apply.direction import difference_of_means
from sae.apply.removal import matched as of_like_rate
from sae.apply.text_codes import TextReader

MEANS, FEATURE, CONTROL = "difference of means", "feature", "feature of like rate"


class Direction(NamedTuple):
    """A direction, what it is, and the feature that it belongs to, if any."""

    kind: str
    feature: int | None
    vector: Float[Tensor, " d_out"]


class TextEvidence(NamedTuple):
    """What a dictionary sees in some texts: the largest activation of every feature [texts, d_sae], and the mean activation
    that it reconstructs [texts, d_out].
    """

    maxima: Float[np.ndarray, "texts d_sae"]
    means: Float[np.ndarray, "texts d_out"]


def evidence_of(reader: TextReader, texts: list[str]) -> TextEvidence:
    """Both for every text."""
    return TextEvidence(reader.read_every(texts).maxima(), reader.activations(texts))


def directions_of(
    reader: TextReader, evidence: TextEvidence, is_concept: Bool[np.ndarray, " texts"], rng: np.random.Generator
) -> list[Direction]:
    """The best feature, the difference of means, and another feature that fires as often as the best."""
    positive, negative = evidence.maxima[is_concept], evidence.maxima[~is_concept]
    feature = best_feature(positive, negative)
    rate = (evidence.maxima > 0).mean(0)
    [other] = of_like_rate([feature], rate, rng)
    difference = difference_of_means(evidence.means[is_concept], evidence.means[~is_concept])
    rows = reader.sae.W_dec.detach().float()
    return [
        Direction(FEATURE, feature, rows[feature]),
        Direction(CONTROL, other, rows[other]),
        Direction(MEANS, None, torch.from_numpy(difference).to(rows)),
    ]
