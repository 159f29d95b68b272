"""dictionary_learning: config.json and ae.pt, in the layout of torch's linear layers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from sae.errors import ArtefactError, ConfigError
from sae.interop.foreign_files import ForeignTensors, read_json, read_tensors, whole_number
from sae.interop.foreign_weights import ForeignWeights
from sae.interop.format import Format
from sae.model.hookpoints import SITES


@final
class DictionaryLearning(Format):
    """Trainer folders of dictionary_learning."""

    files = ("config.json", "ae.pt")

    def write(self, weights: ForeignWeights, folder: Path) -> None:
        """config.json and ae.pt."""
        if weights.W_enc.shape[0] != weights.W_dec.shape[1] or not weights.centred or "W_skip" in weights.extra:
            raise ConfigError("dictionary_learning has no transcoders; use --to sparsify.")
        if weights.token_norm:
            raise ConfigError("dictionary_learning does not normalise tokens; this dictionary needs it.")

        dict_class, tensors = _their_tensors(weights)
        torch.save({name: t.contiguous() for name, t in tensors.items()}, folder / "ae.pt")
        d_in, d_sae = weights.W_enc.shape
        site, _, layer = weights.facts["hook"].partition(".")
        trainer = {
            "trainer_class": "saedex", "dict_class": dict_class, "lr": None, "steps": None, "activation_dim": d_in,
            "dict_size": d_sae, "k": weights.k, "device": "cpu", "layer": int(layer),
            "lm_name": weights.facts["model"], "submodule_name": site, "wandb_name": "saedex", "seed": None,
            "lossy": weights.lossy,
        }  # fmt: skip
        config = {"trainer": trainer, "buffer": {"ctx_len": weights.facts["ctx_len"], "d_submodule": d_in}}
        (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")

    def read(self, path: Path) -> ForeignWeights:
        """A folder with config.json and ae.pt."""
        trainer = read_json(path / "config.json").get("trainer")
        if not isinstance(trainer, dict):
            raise ArtefactError(f"{path / 'config.json'}: no object 'trainer' with the dictionary's class.")

        kind = trainer.get("dict_class")
        if not isinstance(kind, str) or kind not in READERS:
            raise ArtefactError(f"{path}: dict_class {kind!r} is not known; known: {', '.join(READERS)}.")

        file = path / "ae.pt"
        tensors = ForeignTensors(read_tensors(file), file)
        weights = READERS[kind](tensors, file)
        tensors.check_all_taken()
        if "k" in trainer and weights.k is not None and trainer["k"] != weights.k:
            raise ArtefactError(f"{path}: config.json says k {trainer['k']!r}, {file.name} says {weights.k!r}.")

        return replace(weights, facts={"model": trainer.get("lm_name"), **_hook(trainer)})


def _hook(trainer: dict[str, Any]) -> dict[str, str]:
    """The hook point that the file names in one of the ways that are in use: `resid_post`, `resid_post_layer_5`.

    `mlp_out` and `attn_out` are taken as ours from our own files alone: some models normalise what a module gives before
    they add it to the stream.
    """
    name, layer = str(trainer.get("submodule_name")), trainer.get("layer")
    sites = SITES if trainer.get("trainer_class") == "saedex" else ("resid_pre", "resid_post")
    match = re.fullmatch(rf"({'|'.join(sites)})(?:_layer_(\d+))?", name)
    numbers = {str(number) for number in (layer, match and match[2]) if number is not None}
    if match and len(numbers) == 1 and (number := numbers.pop()).isdecimal():
        return {"hook": f"{match[1]}.{number}"}
    return {"hook_of_file": f"submodule_name {name}, layer {layer}"}


def _relu(tensors: ForeignTensors, file: Path) -> ForeignWeights:
    """Their loader normalises the decoder of this class, and of no other."""
    encoder, b_enc = tensors.matrix("encoder.weight"), tensors.vector("encoder.bias")
    decoder, b_dec = tensors.matrix("decoder.weight"), tensors.vector("bias")
    weights = ForeignWeights("relu", encoder.T, b_enc, decoder.T, b_dec=b_dec)
    weights.check_shapes()
    return weights.with_unit_rows()


def _relu_uncentred(tensors: ForeignTensors, file: Path) -> ForeignWeights:
    encoder, b_enc = tensors.matrix("encoder.weight"), tensors.vector("encoder.bias")
    decoder, b_dec = tensors.matrix("decoder.weight"), tensors.vector("decoder.bias")
    return ForeignWeights("relu", encoder.T, b_enc, decoder.T, b_dec=b_dec, centred=False)


def _gated(tensors: ForeignTensors, file: Path) -> ForeignWeights:
    encoder, gate = tensors.matrix("encoder.weight"), tensors.vector("gate_bias")
    decoder, b_dec = tensors.matrix("decoder.weight"), tensors.vector("decoder_bias")
    extra = {"r_mag": tensors.vector("r_mag"), "b_mag": tensors.vector("mag_bias")}
    return ForeignWeights("gated", encoder.T, gate, decoder.T, b_dec=b_dec, extra=extra)


def _topk(tensors: ForeignTensors, file: Path) -> ForeignWeights:
    encoder, b_enc = tensors.matrix("encoder.weight"), tensors.vector("encoder.bias")
    decoder, b_dec = tensors.matrix("decoder.weight"), tensors.vector("b_dec")
    tensors.pop("threshold")  # of another way to select, which their loader does not take
    k = whole_number(tensors.pop("k"))
    return ForeignWeights("topk", encoder.T, b_enc, decoder.T, b_dec=b_dec, k=k)


def _batch_topk(tensors: ForeignTensors, file: Path) -> ForeignWeights:
    encoder, b_enc = tensors.matrix("encoder.weight"), tensors.vector("encoder.bias")
    decoder, b_dec = tensors.matrix("decoder.weight"), tensors.vector("b_dec")
    extra = {"threshold": _one_threshold(tensors, file, len(b_enc))}
    k = whole_number(tensors.pop("k"))
    return ForeignWeights("jumprelu", encoder.T, b_enc, decoder.T, b_dec=b_dec, extra=extra, k=k)


def _matryoshka(tensors: ForeignTensors, file: Path) -> ForeignWeights:
    W_enc, b_enc = tensors.matrix("W_enc"), tensors.vector("b_enc")
    W_dec, b_dec = tensors.matrix("W_dec"), tensors.vector("b_dec")
    extra = {"threshold": _one_threshold(tensors, file, len(b_enc))}
    k = whole_number(tensors.pop("k"))
    tensors.pop("group_sizes")  # their loader makes all groups active
    return ForeignWeights("jumprelu", W_enc, b_enc, W_dec, b_dec=b_dec, extra=extra, k=k)


def _jumprelu(tensors: ForeignTensors, file: Path) -> ForeignWeights:
    W_enc, b_enc = tensors.matrix("W_enc"), tensors.vector("b_enc")
    W_dec, b_dec = tensors.matrix("W_dec"), tensors.vector("b_dec")
    threshold = tensors.vector("threshold").clamp_min(0)  # theirs is ReLU(z 1[z > t]), so t < 0 does what 0 does
    return ForeignWeights("jumprelu", W_enc, b_enc, W_dec, b_dec=b_dec, centred=False, extra={"threshold": threshold})


def _one_threshold(tensors: ForeignTensors, file: Path, d_sae: int) -> Tensor:
    threshold = tensors.vector_or_number("threshold")
    if threshold.dim() != 0:
        raise ArtefactError(f"{file}: threshold has shape {list(threshold.shape)}, expected is one number.")
    if threshold < 0:
        raise ArtefactError(f"{file}: the inference threshold was never set, so single tokens cannot be encoded.")
    return threshold.expand(d_sae).contiguous()


READERS: dict[str, Callable[[ForeignTensors, Path], ForeignWeights]] = {
    "AutoEncoder": _relu,
    "AutoEncoderNew": _relu_uncentred,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jumprelu,
    "MatryoshkaBatchTopKSAE": _matryoshka,
}


def _their_tensors(weights: ForeignWeights) -> tuple[str, dict[str, Tensor]]:
    """(their class, its tensors)."""
    if weights.kind not in ("topk", "relu", "gated", "jumprelu"):
        raise ConfigError(f"dictionary_learning has nothing that computes as {weights.kind}.")
    linear = {"encoder.weight": weights.W_enc.T, "decoder.weight": weights.W_dec.T}
    if weights.kind == "topk":
        rest = {"encoder.bias": weights.b_enc, "b_dec": weights.b_dec, "threshold": torch.tensor(-1.0)}
        return "AutoEncoderTopK", linear | rest | {"k": torch.tensor(weights.k, dtype=torch.int32)}

    if weights.kind == "relu":
        return "AutoEncoder", linear | {"encoder.bias": weights.b_enc, "bias": weights.b_dec}
    if weights.kind == "gated":
        gate = {"r_mag": weights.extra["r_mag"], "gate_bias": weights.b_enc, "mag_bias": weights.extra["b_mag"]}
        return "GatedAutoEncoder", linear | gate | {"decoder_bias": weights.b_dec}

    free = weights.as_centred(False)
    tensors = {"W_enc": free.W_enc, "b_enc": free.b_enc, "W_dec": free.W_dec, "b_dec": free.b_dec}

    return "JumpReluAutoEncoder", tensors | {"threshold": free.extra["threshold"]}
