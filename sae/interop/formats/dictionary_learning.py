"""dictionary_learning: config.json and ae.pt, in the layout of torch's linear layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from sae.errors import ArtefactError, ConfigError
from sae.interop.foreign_weights import ForeignWeights
from sae.interop.format import Format, named_tensors, read_json, read_tensors
from sae.model.hookpoints import SITES


@final
class DictionaryLearning(Format):
    """Trainer folders of dictionary_learning."""

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
        (folder / "config.json").write_text(json.dumps(config, indent=1))

    def read(self, path: Path) -> ForeignWeights:
        """A folder with config.json and ae.pt."""
        trainer = read_json(path / "config.json").get("trainer", {})
        file = path / "ae.pt"
        tensors = read_tensors(file)
        facts = {"model": trainer.get("lm_name", "unknown"), "hook": f"{_site(trainer)}.{trainer.get('layer', 0)}"}
        kind = trainer.get("dict_class")
        if kind in ("AutoEncoderTopK", "BatchTopKSAE"):
            encoder, b_enc, decoder, b_dec = named_tensors(
                tensors, file, "encoder.weight", "encoder.bias", "decoder.weight", "b_dec"
            )
            shared: Any = {"W_enc": encoder.T, "b_enc": b_enc, "W_dec": decoder.T, "b_dec": b_dec, "facts": facts}
            if kind == "AutoEncoderTopK":
                (k,) = named_tensors(tensors, file, "k")
                return ForeignWeights("topk", k=int(k), **shared)
            return ForeignWeights("jumprelu", extra={"threshold": _threshold(tensors, file, len(b_enc))}, **shared)

        if kind == "AutoEncoder":
            names = ("encoder.weight", "encoder.bias", "decoder.weight", "bias")
            encoder, b_enc, decoder, b_dec = named_tensors(tensors, file, *names)
            return ForeignWeights("relu", encoder.T, b_enc, decoder.T, b_dec=b_dec, facts=facts)

        if kind == "AutoEncoderNew":
            names = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
            encoder, b_enc, decoder, b_dec = named_tensors(tensors, file, *names)
            return ForeignWeights("relu", encoder.T, b_enc, decoder.T, b_dec=b_dec, centred=False, facts=facts)

        if kind == "GatedAutoEncoder":
            names = ("encoder.weight", "gate_bias", "decoder.weight", "decoder_bias", "r_mag", "mag_bias")
            encoder, gate, decoder, b_dec, r_mag, b_mag = named_tensors(tensors, file, *names)
            return ForeignWeights(
                "gated", encoder.T, gate, decoder.T, b_dec=b_dec, extra={"r_mag": r_mag, "b_mag": b_mag}, facts=facts
            )

        if kind in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
            W_enc, b_enc, W_dec, b_dec = named_tensors(tensors, file, "W_enc", "b_enc", "W_dec", "b_dec")
            threshold = _threshold(tensors, file, len(b_enc))
            centred = kind == "MatryoshkaBatchTopKSAE"
            return ForeignWeights(
                "jumprelu",
                W_enc,
                b_enc,
                W_dec,
                b_dec=b_dec,
                k=None,
                centred=centred,
                extra={"threshold": threshold},
                facts=facts,
            )

        raise ArtefactError(f"{path}: dict_class {kind!r} is not known.")


def _site(trainer: dict[str, Any]) -> str:
    """The site that the file names, if it is one of ours; dictionary_learning itself reads everything as resid_post."""
    name = str(trainer.get("submodule_name"))
    return name if name in SITES else "resid_post"


def _threshold(tensors: dict[str, Any], file: Path, d_sae: int) -> Tensor:
    (threshold,) = named_tensors(tensors, file, "threshold")
    if threshold.dim() == 0 and threshold < 0:
        raise ArtefactError(f"{file}: the inference threshold was never set, so single tokens cannot be encoded.")
    return threshold.expand(d_sae).contiguous()


def _their_tensors(weights: ForeignWeights) -> tuple[str, dict[str, Tensor]]:
    """(their class, its tensors)."""
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
