"""Llama Scope 1: hyperparams.json and checkpoints/final.safetensors; JumpReLU with one threshold, inputs of a mean norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import torch

from sae.errors import ArtefactError, ConfigError
from sae.interop.foreign_files import ForeignTensors, choice, read_json, read_tensors
from sae.interop.foreign_weights import ForeignWeights
from sae.interop.format import Format
from sae.interop.hook_names import our_hook

MODEL = "meta-llama/Llama-3.1-8B"


@final
class LlamaScope(Format):
    """Folders of Llama Scope 1.

    It was trained on x * sqrt(d) / (mean norm of the data), which its settings state, so the scale is folded:
    W_enc' = s W_enc, W_dec' = W_dec / s, b_dec' = b_dec / s, with s of what is read and of what is written.
    """

    writes, files = False, ("hyperparams.json", "checkpoints/final.safetensors")

    def write(self, weights: ForeignWeights, folder: Path) -> None:
        """Not offered."""
        raise ConfigError("there is no export to Llama Scope's format; use --to saelens.")

    def read(self, path: Path) -> ForeignWeights:
        """A folder of one layer and site."""
        config, file = path / "hyperparams.json", path / "checkpoints" / "final.safetensors"
        settings = read_json(config)
        choice(settings, "act_fn", config, ("jumprelu",))
        choice(settings, "apply_decoder_bias_to_pre_encoder", config, (False,))
        choice(settings, "norm_activation", config, ("dataset-wise",))
        by_norm = choice(settings, "sparsity_include_decoder_norm", config, (False, True))
        tensors = ForeignTensors(read_tensors(file), file)
        encoder, b_enc = tensors.matrix("encoder.weight"), tensors.vector("encoder.bias")
        decoder, b_dec = tensors.matrix("decoder.weight"), tensors.vector("decoder.bias")
        tensors.check_all_taken()

        threshold = _number(settings, "jump_relu_threshold", config)
        scale_in, scale_out = _scales(settings, config, encoder.shape[1], decoder.shape[0])
        weights = ForeignWeights(
            "jumprelu",
            encoder.T,
            b_enc,
            decoder.T,
            b_dec=b_dec,
            centred=False,
            extra={"threshold": torch.full_like(b_enc, threshold * scale_in)},  # the file's is in units of the input
            facts=_facts(settings, config),
        )
        weights.check_shapes()
        return (weights.selected_by_norm() if by_norm else weights).scaled(scale_in, scale_out)


def _number(settings: dict[str, Any], key: str, path: Path) -> float:
    value = settings.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
        raise ArtefactError(f"{path}: {key} is {value!r}, expected is a number of at least 0.")
    return float(value)


def _scales(settings: dict[str, Any], path: Path, d_in: int, d_out: int) -> tuple[float, float]:
    """sqrt(d) / mean norm, of what is read and of what is written."""
    norms = settings.get("dataset_average_activation_norm")
    if not isinstance(norms, dict):
        raise ArtefactError(
            f"{path}: dataset_average_activation_norm is {norms!r}, expected are two norms, in and out."
        )
    means = [_number(norms, side, path) for side in ("in", "out")]
    if not all(means):
        raise ArtefactError(f"{path}: dataset_average_activation_norm is {norms!r}; a norm of 0 cannot be.")
    return d_in**0.5 / means[0], d_out**0.5 / means[1]


def _facts(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    point, target = str(settings.get("hook_point_in")), settings.get("hook_point_out")
    hook = our_hook(point)
    facts: dict[str, Any] = {"model": MODEL, "hook_of_file": point} | ({"hook": hook} if hook else {})
    if target not in (None, point):
        written = our_hook(str(target))
        if written is None:
            raise ArtefactError(f"{path}: writes {target!r}, which is no hook point that saedex knows for certain.")
        facts["target"] = written
    return facts
