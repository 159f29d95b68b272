"""What a language model does to the norms of its activations, layer by layer: voids, and massive activations.

Layer activity (L2 adaptive computation, Shemiranifar 2025, arXiv 2505.14467): at a token, layer l changes the norm of the
residual stream by delta_l = ||h_l|| - ||h_(l-1)||; it is a void if delta_l < alpha (max delta - min delta), both over the layers
up to l. Massive activations (Sun et al. 2024, arXiv 2402.17762): numbers of at least 100 and at least 1,000 times the median of
their layer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.model.hookpoints import HookPoint
from sae.stream.harvest import Harvester

ALPHA = 0.8
LEAST, MULTIPLE = 100.0, 1000.0
FAR = 10.0  # multiples of the median norm from which on a position is far off
FIRST = 8  # positions that are looked at one by one


class LayerActivity(NamedTuple):
    """By layer: the norms of the stream, how often the layer is a void, and what is massive.

    `median_norm`, `far` (share of positions over ten median norms) and `void` are over all positions but the first;
    `share_of_far` is their part of the sum of squares about the mean, which a dictionary of raw activations would be trained
    on. `massive` counts positions with a massive number, `coordinates` are those that are massive most often.
    """

    layer: int
    median_norm: float
    first_norm: float
    void: float
    far: float
    share_of_far: float
    massive: int
    coordinates: list[int]


class Inspection(NamedTuple):
    """The activity of every layer; the mean norm at each of the first positions, [layers, positions]; tokens far off most often."""

    layers: list[LayerActivity]
    by_position: Float[np.ndarray, "layers positions"]
    far_tokens: list[tuple[int, int]]
    n_tokens: int


def voids(norms: Float[Tensor, "tokens layers1"], alpha: float = ALPHA) -> Bool[Tensor, "tokens layers"]:
    """Which layers are voids at each token, from the norms of what enters the first layer and leaves every layer."""
    delta = norms[:, 1:] - norms[:, :-1]
    most, least = delta.cummax(1).values, delta.cummin(1).values
    return delta < alpha * (most - least)


def massive(x: Float[Tensor, "tokens d"]) -> Bool[Tensor, "tokens d"]:
    """Which numbers are massive: at least 100, and at least 1,000 times the median of all of them in size."""
    size = x.abs()
    return (size >= LEAST) & (size >= MULTIPLE * size.median())


def harvest_points(n_layers: list[int]) -> tuple[HookPoint, ...]:
    """What enters the first of these layers, and what leaves each of them."""
    return (HookPoint("resid_pre", n_layers[0]), *(HookPoint("resid_post", layer) for layer in n_layers))


@torch.no_grad()
def inspect(harvester: Harvester, ids: Int[np.ndarray, "contexts ctx_len"]) -> Inspection:
    """The activity of all layers that the harvester reads, on some contexts (documents of their own).

    Every activation of these contexts is in memory at once, [layers, tokens, d].
    """
    hooks = harvester.hooks
    harvested = harvester.harvest(ids, np.zeros_like(ids))
    streams = [x.float() for channel in harvester.channels if channel.hook in hooks for x in (harvested.x[channel],)]
    norms = torch.stack([x.norm(dim=2) for x in streams], dim=2)  # [contexts, ctx_len, layers + 1]
    later = norms[:, 1:].flatten(0, 1)
    is_void = voids(later).float().mean(0).tolist()

    layers = []
    far_positions = torch.zeros(ids.shape, dtype=torch.long)
    for number, (hook, x) in enumerate(zip(hooks[1:], streams[1:], strict=True)):
        rows, norm = x[:, 1:].flatten(0, 1), later[:, number + 1]
        median = norm.median()
        far = norms[:, :, number + 1] > FAR * median
        far_positions += far.cpu()
        is_massive = massive(x.flatten(0, 1))
        squares = (x.flatten(0, 1) - rows.mean(0)).square().sum(1)
        layers.append(
            LayerActivity(
                hook.layer, float(median), float(norms[:, 0, number + 1].mean()), is_void[number],
                far=float(far[:, 1:].float().mean()), share_of_far=float(squares[far.flatten()].sum() / squares.sum()),
                massive=int(is_massive.any(1).sum()), coordinates=_most(is_massive.sum(0)),
            )
        )  # fmt: skip

    by_position = norms[:, :FIRST, 1:].mean(0).T.cpu().numpy()
    return Inspection(layers, by_position, _far_tokens(ids, far_positions.numpy()), ids.size)


def _most(counts: Tensor, n: int = 5) -> list[int]:
    order = counts.argsort(descending=True, stable=True)[:n]
    return [int(place) for place in order if counts[place] > 0]


def _far_tokens(ids: np.ndarray, far: np.ndarray, n: int = 20) -> list[tuple[int, int]]:
    """Tokens after the first position that are far off in the most layers and places: (token, how often)."""
    counts = np.bincount(ids[:, 1:].ravel(), weights=far[:, 1:].ravel())
    order = np.argsort(-counts, kind="stable")[:n]
    return [(int(token), int(counts[token])) for token in order if counts[token] > 0]
