"""SAELens 6: cfg.json and sae_weights.safetensors, matrices (d_in, d_sae) and (d_sae, d_in)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import final

from safetensors.torch import save_file

from sae.errors import ArtefactError, ConfigError
from sae.interop.foreign_weights import ForeignWeights, Kind
from sae.interop.format import Format, named_tensors, read_json, read_tensors

ARCHITECTURES: dict[Kind, str] = {"topk": "topk", "jumprelu": "jumprelu", "relu": "standard", "gated": "gated"}
SITES = {
    "resid_pre": "hook_resid_pre", "resid_post": "hook_resid_post", "attn_out": "hook_attn_out",
    "attn_z": "attn.hook_z", "mlp_out": "hook_mlp_out", "mlp_hidden": "mlp.hook_post",
    "mlp_in": "ln2.hook_normalized",
}  # fmt: skip


def hook_name(hook: str) -> str:
    """`blocks.8.hook_resid_post` for `resid_post.8`."""
    site, _, layer = hook.partition(".")
    return f"blocks.{layer}.{SITES[site]}"


def our_hook(name: str) -> str | None:
    """The inverse of `hook_name`; None for a hook point that saedex does not know."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    site = next((s for s, n in SITES.items() if match and n == match[2]), None)
    return None if match is None or site is None else f"{site}.{match[1]}"


@final
class SaeLens(Format):
    """Inference folders of SAELens 6."""

    def write(self, weights: ForeignWeights, folder: Path) -> None:
        """cfg.json and sae_weights.safetensors."""
        if "W_skip" in weights.extra or weights.W_enc.shape[0] != weights.W_dec.shape[1] or not weights.centred:
            raise ConfigError("SAELens has no TopK transcoder that it can load; use --to sparsify.")

        tensors = {"W_enc": weights.W_enc, "W_dec": weights.W_dec, "b_dec": weights.b_dec}
        if weights.kind == "gated":  # their magnitude path adds b_mag to exp(r_mag) W x, ours subtracts the gate's bias
            tensors |= {"b_gate": weights.b_enc, "r_mag": weights.extra["r_mag"], "b_mag": weights.extra["b_mag"]}
        else:
            tensors |= {"b_enc": weights.b_enc}

        if weights.kind == "jumprelu":
            tensors["threshold"] = weights.extra["threshold"]

        d_in, d_sae = weights.W_enc.shape
        cfg = {
            "architecture": ARCHITECTURES[weights.kind],
            "d_in": d_in,
            "d_sae": d_sae,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "layer_norm" if weights.token_norm else "none",
            "reshape_activations": "hook_z" if weights.facts["hook"].startswith("attn_z") else "none",
            **({"k": weights.k, "rescale_acts_by_decoder_norm": False} if weights.kind == "topk" else {}),
            "metadata": {
                "sae_lens_version": "6.54.12",
                "model_name": weights.facts["model"],
                "hook_name": hook_name(weights.facts["hook"]),
                "context_size": weights.facts["ctx_len"],
                "training_architecture": weights.facts["architecture"],
                "exported_by": "saedex",
                "lossy": weights.lossy,
            },
        }
        save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "sae_weights.safetensors")
        (folder / "cfg.json").write_text(json.dumps(cfg, indent=1))

    def read(self, path: Path) -> ForeignWeights:
        """A folder with cfg.json."""
        cfg = read_json(path / "cfg.json")
        kind: Kind | None = next(
            (ours for ours, theirs in ARCHITECTURES.items() if theirs == cfg.get("architecture")), None
        )
        if kind is None:
            raise ArtefactError(
                f"{path}: architecture {cfg.get('architecture')!r}; known: {', '.join(ARCHITECTURES.values())}."
            )

        normalised = cfg.get("normalize_activations", "none")
        if normalised not in ("none", "layer_norm"):
            raise ArtefactError(f"{path}: normalize_activations {normalised!r}; fold it in SAELens first.")

        file = path / "sae_weights.safetensors"
        tensors = read_tensors(file)
        W_enc, W_dec, b_dec = named_tensors(tensors, file, "W_enc", "W_dec", "b_dec")
        (b_enc,) = named_tensors(tensors, file, "b_gate" if kind == "gated" else "b_enc")
        names = {"jumprelu": ("threshold",), "gated": ("r_mag", "b_mag")}.get(kind, ())
        extra = dict(zip(names, named_tensors(tensors, file, *names), strict=True))
        if cfg.get("rescale_acts_by_decoder_norm"):
            norms = W_dec.norm(dim=1)
            W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]

        metadata = cfg.get("metadata", {})
        facts = {"model": metadata.get("model_name", "unknown"), "ctx_len": metadata.get("context_size")}
        hook = our_hook(str(metadata.get("hook_name")))
        facts |= {"hook": hook} if hook else {}
        centred = cfg.get("apply_b_dec_to_input", True)

        return ForeignWeights(
            kind,
            W_enc,
            b_enc,
            W_dec,
            b_dec=b_dec,
            k=cfg.get("k"),
            centred=centred,
            token_norm=normalised == "layer_norm",
            extra=extra,
            lossy=None,
            facts=facts,
        )  # pyright: ignore[reportArgumentType]
