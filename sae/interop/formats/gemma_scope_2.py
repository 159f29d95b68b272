"""Gemma Scope 2: config.json and params.safetensors with lower-case names; SAEs and transcoders, with or without skip."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import save_file

from sae.errors import ArtefactError, ConfigError
from sae.interop.foreign_files import ForeignTensors, choice, read_json, read_tensors
from sae.interop.foreign_weights import ForeignWeights
from sae.interop.format import Format

PLACES = {
    "output": "resid_post",
    "self_attn.o_proj.input": "attn_z",
    "post_feedforward_layernorm.output": "mlp_out",
    "pre_feedforward_layernorm.output": "mlp_in",
}
POINT = re.compile(r"model\.(?:language_model\.)?layers\.(\d+)\.(.+)")


def our_hook(point: str) -> str | None:
    """`mlp_out.8` for `model.layers.8.post_feedforward_layernorm.output`; None for one that saedex does not know."""
    match = POINT.fullmatch(point)
    site = PLACES.get(match[2]) if match else None
    return f"{site}.{match[1]}" if match and site else None


def their_point(hook: str) -> str:
    """The inverse of `our_hook`; raises `ConfigError` for a hook point that the release has no dictionaries of."""
    site, _, layer = hook.partition(".")
    for place, ours in PLACES.items():
        if ours == site:
            return f"model.layers.{layer}.{place}"
    raise ConfigError(f"Gemma Scope 2 has no dictionaries at {hook}; it has {', '.join(PLACES.values())}.")


@final
class GemmaScope2(Format):
    """Folders of Gemma Scope 2.

    Its cross-layer transcoders and weakly causal crosscoders are refused: no dictionary of one layer is the same thing.
    """

    files = ("config.json", "params*.safetensors")

    def write(self, weights: ForeignWeights, folder: Path) -> None:
        """config.json and params.safetensors."""
        if weights.kind not in ("jumprelu", "relu") or weights.token_norm:
            raise ConfigError(f"Gemma Scope 2 holds JumpReLU; this one computes as {weights.kind}. Use --to saelens.")

        free = weights.as_centred(False)
        tensors = {
            "w_enc": free.W_enc,
            "w_dec": free.W_dec,
            "b_enc": free.b_enc,
            "b_dec": free.b_dec,
            "threshold": free.extra.get("threshold", torch.zeros_like(free.b_enc)),
        }
        target = weights.facts.get("target")
        config: dict[str, Any] = {
            "architecture": "jump_relu",
            "model_name": weights.facts["model"],
            "hf_hook_point_in": their_point(weights.facts["hook"]),
            "width": free.W_enc.shape[1],
        }
        if target:
            config |= {"hf_hook_point_out": their_point(target), "affine_connection": "W_skip" in free.extra}
        if "W_skip" in free.extra:
            tensors["affine_skip_connection"] = free.extra["W_skip"]
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "params.safetensors")
        (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")

    def read(self, path: Path) -> ForeignWeights:
        """A folder of an SAE or of a transcoder of one layer."""
        config, file = path / "config.json", path / "params.safetensors"
        settings = read_json(config)
        choice(settings, "architecture", config, ("jump_relu",))
        if parts := sorted(part.name for part in path.glob("params_layer_*.safetensors")):
            raise ArtefactError(
                f"{path}: a weakly causal crosscoder, in {len(parts)} files such as {parts[0]}: latents of a layer write that "
                "layer and later ones. saedex has crosscoders that read all their layers, and reads no such."
            )
        tensors = ForeignTensors(read_tensors(file), file)
        W_enc, b_enc = tensors.matrix("w_enc"), tensors.vector("b_enc")
        if tensors.rank("w_dec") == 3:
            raise ArtefactError(
                f"{file}: a cross-layer transcoder: it writes several layers. saedex has dictionaries that write one; a sum "
                "over layers would be another thing."
            )
        W_dec, b_dec = tensors.matrix("w_dec"), tensors.vector("b_dec")
        extra = {"threshold": tensors.vector("threshold").clamp_min(0)}  # ReLU(z) 1[z > t]: t < 0 does what 0 does
        if "affine_skip_connection" in tensors:
            extra["W_skip"] = tensors.matrix("affine_skip_connection")
        tensors.check_all_taken()
        return ForeignWeights(
            "jumprelu", W_enc, b_enc, W_dec, b_dec=b_dec, centred=False, extra=extra, facts=_facts(settings, config)
        )


def _facts(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Model, hook points and l0, as far as the config says them."""
    point, target = settings.get("hf_hook_point_in"), settings.get("hf_hook_point_out")
    facts: dict[str, Any] = {"model": _model(settings.get("model_name")), "hook_of_file": point}
    if isinstance(point, str) and (hook := our_hook(point)):
        facts["hook"] = hook
    if isinstance(settings.get("l0"), int | float) and settings["l0"] > 0:
        facts["l0"] = float(settings["l0"])
    if target not in (None, "", point):
        written = our_hook(target) if isinstance(target, str) else None
        if written is None:
            raise ArtefactError(f"{path}: writes {target!r}, which is no hook point that saedex knows for certain.")
        facts["target"] = written
    return facts


def _model(name: Any) -> str | None:
    """The repository of the model, which the files call in several ways; that of 270m has no -pt on the hub."""
    if not isinstance(name, str) or not name:
        return None
    name = name.replace("-v3", "-3")
    name = name.removesuffix("-pt") if "270m" in name else name
    return name if "/" in name or not name.startswith("gemma-") else f"google/{name}"
