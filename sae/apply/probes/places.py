"""Activations of every layer at the last tokens of texts."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from sae.model.hookpoints import Channel, HookPoint
from sae.model.language_model import LanguageModel
from sae.stream.harvest import HarvestConfig, Harvester


def streams_at_the_end(
    lm: LanguageModel, texts: list[str], *, ctx_len: int, n_positions: int
) -> Float[np.ndarray, "layers positions texts d"]:
    """What leaves every layer at the last `n_positions` tokens of every text, the very last first.

    Texts are cut at `ctx_len` tokens. A text of fewer than `n_positions` tokens repeats its first one.
    """
    layers = sorted(lm.blocks.running)
    channels = tuple(Channel(HookPoint("resid_post", layer)) for layer in layers)
    harvester = Harvester(lm, channels, HarvestConfig(drop_positions=0, drop_special=False), "joined")
    ids = [lm.token_ids(text, ctx_len) for text in texts]
    out = np.zeros((len(layers), n_positions, len(texts), lm.d_model), np.float32)

    order = np.argsort(
        [len(row) for row in ids], kind="stable"
    )  # texts of like length together, so that little is padded
    step = harvester.config.contexts_per_pass(ctx_len, lm.device)
    for start in range(0, len(order), step):
        part = order[start : start + step]
        rows = np.zeros((len(part), max(len(ids[number]) for number in part)), np.int64)
        for row, number in enumerate(part):
            rows[row, : len(ids[number])] = ids[number]
        harvested = harvester.harvest(rows, np.zeros_like(rows)).x
        for back in range(n_positions):
            places = torch.tensor([max(len(ids[number]) - 1 - back, 0) for number in part], device=lm.device)
            for layer, channel in enumerate(channels):
                x = harvested[channel][torch.arange(len(part), device=lm.device), places]
                out[layer, back, part] = x.float().cpu().numpy()

    return out
