"""What a dictionary's latents do to a prediction: the change of each between two prompts, patched and estimated."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from sae.apply.patching.components import PairReading, Patch, Patcher
from sae.apply.patching.prompts import PairIds
from sae.architectures import SparseAutoencoder
from sae.model.hookpoints import HookPoint


class LatentChanges(NamedTuple):
    """What changes in the code between two prompts, a row per position and latent.

    `parts` [n, width] is what the change adds to the activation at its position; `estimates` [n] are by method.
    """

    positions: Int[torch.Tensor, " n"]
    latents: Int[torch.Tensor, " n"]
    parts: Float[torch.Tensor, "n width"]
    estimates: dict[str, Float[np.ndarray, " n"]]


@torch.no_grad()
def latent_changes(sae: SparseAutoencoder, hook: HookPoint, pair: PairIds, reading: PairReading) -> LatentChanges:
    """The latents whose activations differ, from the first difference of the prompts on."""
    dense = []
    for values in (reading.clean.values[hook], reading.corrupt.values[hook]):
        code = sae.encode(values)
        table = torch.zeros(len(values), sae.d_sae, device=values.device)
        dense.append(table.scatter_add(1, code.top_indices, code.top_acts))
    difference = dense[1] - dense[0]
    difference[: pair.first] = 0
    positions, latents = difference.nonzero(as_tuple=True)
    parts = difference[positions, latents][:, None] * sae.W_dec.detach()[latents]
    deviation = sae.prepared(reading.clean.values[hook]).deviation
    if deviation is not None:  # back from the token's normalised space
        parts = parts * deviation[positions]
    estimates = {
        method: (parts * coefficients[hook][positions]).sum(1).double().cpu().numpy()
        for method, coefficients in reading.coefficients.items()
    }
    return LatentChanges(positions, latents, parts, estimates)


def single_effects(
    patcher: Patcher,
    hook: HookPoint,
    pair: PairIds,
    reading: PairReading,
    *,
    changes: LatentChanges,
    rows: Int[np.ndarray, " rows"],
) -> Float[np.ndarray, " rows"]:
    """The true effect of some rows of the changes, one at a time."""
    clean, patches = reading.clean.values[hook], []
    for row in rows.tolist():
        position = changes.positions[row]
        patches.append(Patch(hook, position[None], (clean[position] + changes.parts[row])[None]))
    return patcher.patched(pair, patches, range(len(patches)), len(patches)) - reading.clean.metric


def latent_effects(
    patcher: Patcher,
    hook: HookPoint,
    pair: PairIds,
    reading: PairReading,
    *,
    changes: LatentChanges,
    latents: list[int],
) -> Float[np.ndarray, " latents"]:
    """The true effect of each latent's change at all positions; 0 for a latent that does not change."""
    patches = [_of_rows(hook, pair, reading, changes, rows=changes.latents == latent) for latent in latents]
    return patcher.patched(pair, patches, range(len(patches)), len(patches)) - reading.clean.metric


class WholeEffects(NamedTuple):
    """The effect of all latents' changes together, and that of the whole activation's."""

    code: float
    activation: float


def whole_effects(
    patcher: Patcher, hook: HookPoint, pair: PairIds, reading: PairReading, *, changes: LatentChanges
) -> WholeEffects:
    """Both at every position from the first difference on; what the first lacks is in the dictionary's error."""
    positions = torch.arange(pair.first, len(pair.clean), device=changes.parts.device)
    all_latents = _of_rows(hook, pair, reading, changes, rows=torch.ones_like(changes.latents, dtype=torch.bool))
    patches = [all_latents, Patch(hook, positions, reading.corrupt.values[hook][positions])]
    code, activation = patcher.patched(pair, patches, (0, 1), 2) - reading.clean.metric
    return WholeEffects(float(code), float(activation))


def _of_rows(
    hook: HookPoint, pair: PairIds, reading: PairReading, changes: LatentChanges, *, rows: torch.Tensor
) -> Patch:
    """The activations with the parts of some rows of the changes added, from the first difference on."""
    new = reading.clean.values[hook].clone()
    new.index_add_(0, changes.positions[rows], changes.parts[rows])
    positions = torch.arange(pair.first, len(pair.clean), device=new.device)
    return Patch(hook, positions, new[positions])
