"""Gemma Scope 2: config.json and params*.safetensors with lower-case names; SAEs, transcoders, weakly causal crosscoders."""

from __future__ import annotations

import itertools
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
CROSS_LAYER = (
    ": a cross-layer transcoder: it reads one layer and writes several others. saedex has none such; a sum over layers would "
    "be another thing."
)
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

    Crosscoders are read and not written: no other library reads them. Cross-layer transcoders are refused: no dictionary
    of one layer is the same thing.
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
        """A folder of an SAE, of a transcoder of one layer, or of a crosscoder."""
        config, file = path / "config.json", path / "params.safetensors"
        settings = read_json(config)
        choice(settings, "architecture", config, ("jump_relu",))
        if parts := sorted(path.glob("params_layer_*.safetensors"), key=_number):
            return _crosscoder(parts, settings, config)
        tensors = ForeignTensors(read_tensors(file), file)
        W_enc, b_enc = tensors.matrix("w_enc"), tensors.vector("b_enc")
        if tensors.rank("w_dec") == 3:
            raise ArtefactError(f"{file}{CROSS_LAYER}")
        W_dec, b_dec = tensors.matrix("w_dec"), tensors.vector("b_dec")
        extra = {"threshold": tensors.vector("threshold").clamp_min(0)}  # ReLU(z) 1[z > t]: t < 0 does what 0 does
        if "affine_skip_connection" in tensors:
            extra["W_skip"] = tensors.matrix("affine_skip_connection")
        tensors.check_all_taken()
        return ForeignWeights(
            "jumprelu", W_enc, b_enc, W_dec, b_dec=b_dec, centred=False, extra=extra, facts=_facts(settings, config)
        )


def _number(part: Path) -> int:
    """The place of a file among those of its crosscoder; raises `ArtefactError` if its name holds none."""
    number = part.stem.rpartition("_")[2]
    if not number.isascii() or not number.isdigit() or len(number) > 4:
        raise ArtefactError(f"{part}: expected params_layer_0.safetensors and so on.")
    return int(number)


def _crosscoder(parts: list[Path], settings: dict[str, Any], config: Path) -> ForeignWeights:
    """A weakly causal crosscoder: part l holds the latents that read hook point l and write all (to earlier ones, 0).

    w_enc [d, m], w_dec [m, hook points, d]: side by side they are a crosscoder that reads all hook points, of which the
    weights that are in no file are 0.
    """
    if [_number(part) for part in parts] != list(range(len(parts))):
        raise ArtefactError(
            f"{config.parent}: has {', '.join(part.name for part in parts)}; params_layer_0 to the last without a gap are expected."
        )
    blocks = []
    for part in parts:
        tensors = ForeignTensors(read_tensors(part), part)
        if "affine_skip_connection" in tensors:
            raise ArtefactError(f"{part}{CROSS_LAYER}")
        w_dec = tensors.table_of_tables("w_dec")
        if w_dec.shape[1] != len(parts):
            raise ArtefactError(f"{part}: w_dec writes {w_dec.shape[1]} hook points, and there are {len(parts)} files.")
        names = ("b_enc", "threshold", "b_dec")
        block = {"w_enc": tensors.matrix("w_enc"), "w_dec": w_dec, **{name: tensors.vector(name) for name in names}}
        tensors.check_all_taken()
        blocks.append(block)

    joined = {name: torch.cat([block[name] for block in blocks]) for name in ("b_enc", "threshold", "b_dec")}
    return ForeignWeights(
        "jumprelu",
        torch.block_diag(*(block["w_enc"] for block in blocks)),
        joined["b_enc"],
        torch.cat([block["w_dec"].flatten(1) for block in blocks]),
        b_dec=joined["b_dec"],
        centred=False,
        extra={"threshold": joined["threshold"].clamp_min(0)},
        facts=_facts_of_crosscoder(settings, config, [len(block["b_enc"]) for block in blocks]),
    )


def _facts_of_crosscoder(settings: dict[str, Any], path: Path, n_latents: list[int]) -> dict[str, Any]:
    """Model, hook points as far as the config says them, and which latents read which of them."""
    points, target = settings.get("hf_hook_point_in"), settings.get("hf_hook_point_out")
    if target not in (None, "", [], points):
        raise ArtefactError(f"{path.parent}{CROSS_LAYER}")
    facts = _facts({key: value for key, value in settings.items() if not key.startswith("hf_hook_point")}, path)
    ends = list(itertools.accumulate(n_latents))
    starts = ", ".join(f"{end - n:,} to {end - 1:,}" for n, end in zip(n_latents, ends, strict=True))
    facts |= {"n_hooks": len(n_latents), "hook_of_file": points}
    facts["note"] = (
        f"latents {starts} read one hook point each, in their order; saedex holds the zeros between them too"
    )
    hooks = [our_hook(str(point)) for point in points] if isinstance(points, list) else []
    if hooks and all(hooks):
        facts |= {"hook": hooks[0], "more_hooks": hooks[1:]}
    return facts


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
