"""Temporal sparse autoencoders as SAELens computes them: an encoder of what the tokens before do not predict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ArtefactError
from sae.interop.foreign_files import ForeignTensors
from sae.interop.foreign_weights import ForeignWeights
from sae.model.context_prediction import EPS

PARTS = {"k_ctx": "key", "q_target": "query", "v_ctx": "value", "c_proj": "output"}


@dataclass(frozen=True)
class TemporalSettings:
    """What a config says of a temporal dictionary, as the file has it; `weights_of_temporal` checks it."""

    n_layers: Any
    n_heads: Any
    bottleneck: Any  # latents for each number of a query
    kind: Any
    k: Any
    scale: Any = 1.0  # activations are multiplied by it
    is_centred: bool = True

    def check(self, d_sae: int, path: Path) -> None:
        """Raises `ArtefactError` for what cannot be, or what saedex does not read."""
        numbers = {"n_attn_layers": self.n_layers, "n_heads": self.n_heads, "bottleneck_factor": self.bottleneck}
        for key, value in numbers.items():
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= d_sae:
                raise ArtefactError(f"{path}: {key} is {value!r:.100}, expected is a number of 1..{d_sae}.")
        if self.kind != "topk" or self.k is None:
            raise ArtefactError(f"{path}: sae_diff_type {self.kind!r:.100} with k {self.k!r:.100}; saedex reads topk.")
        if not isinstance(self.scale, int | float) or isinstance(self.scale, bool) or not 0 < self.scale < 1e30:
            raise ArtefactError(
                f"{path}: activations are scaled by {self.scale!r:.100}, expected is a positive number."
            )


def tensors_of_temporal(weights: ForeignWeights) -> tuple[dict[str, Float[Tensor, " ..."]], dict[str, Any]]:
    """(tensors, settings) of a temporal dictionary in SAELens' names, with an encoder of its own; `weights_of_temporal` undoes it."""
    scale = EPS / float(weights.more["context.least_norm"])
    d_sae, d = weights.W_dec.shape
    theirs = {ours: name for name, ours in PARTS.items()}
    tensors = {
        "W_enc": weights.W_enc[:d] * (4 * d / scale),
        "W_dec": weights.W_dec * scale,
        "b_dec": weights.b_dec * scale,
    }
    for name, tensor in weights.more.items():
        if name.startswith("context.layers."):
            layer, part, kind = name.removeprefix("context.layers.").split(".")
            tensors[f"attn_layers.{layer}.{theirs[part]}.{kind}"] = tensor

    context = weights.settings["context"]
    settings = {
        "normalize_activations": "constant_scalar_rescale",
        "activation_normalization_factor": scale,
        "n_heads": context["n_heads"],
        "n_attn_layers": context["n_layers"],
        "bottleneck_factor": d_sae // context["d_key"],
        "sae_diff_type": "topk",
        "kval_topk": weights.k,
        "tied_weights": False,
    }
    return tensors, settings


def weights_of_temporal(
    tensors: ForeignTensors,
    names: tuple[str, str, str],
    settings: TemporalSettings,
    *,
    path: Path,
    facts: dict[str, Any],
) -> ForeignWeights:
    """The dictionary in the activations' own units; `names` are those of encoder, decoder and bias in the file.

    Theirs codes lam (s x - b - p) E with lam = 1 / (4 d), and decodes (a D + p + b) / s. E is D^T if it is not there.
    """
    encoder, decoder, bias = names
    W_dec, b_dec = tensors.matrix(decoder), tensors.vector(bias)
    d_sae, d = W_dec.shape
    settings.check(d_sae, path)
    if not settings.is_centred and encoder in tensors:
        raise ArtefactError(f"{path}: adds b_dec and does not subtract it; no temporal dictionary here does.")
    E = tensors.matrix(encoder) if encoder in tensors else W_dec.T
    b_dec = b_dec if settings.is_centred else torch.zeros_like(b_dec)
    context = {
        f"context.layers.{layer}.{ours}.{part}": tensors.matrix(name) if part == "weight" else tensors.vector(name)
        for layer in range(settings.n_layers)
        for theirs, ours in PARTS.items()
        for part in ("weight", "bias")
        for name in [f"attn_layers.{layer}.{theirs}.{part}"]
    }
    tensors.check_all_taken()

    scale, gain = float(settings.scale), 1 / (4 * d)
    W = gain * scale * E
    return ForeignWeights(
        "topk",
        torch.cat([W, -W]),
        -gain * (b_dec @ E),
        W_dec / scale,
        b_dec=b_dec / scale,
        k=settings.k,
        centred=False,
        extra={"W_skip": torch.cat([torch.zeros(d, d), torch.eye(d)])},
        more={**context, "context.least_norm": torch.tensor(EPS / scale)},
        settings={
            "skip": True,
            "context": {
                "n_layers": settings.n_layers, "n_heads": settings.n_heads, "d_key": d_sae // settings.bottleneck,
            },
        },
        facts=facts,
    )  # fmt: skip
