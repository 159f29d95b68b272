"""Per-layer transcoders as circuit-tracer reads them: layer_N.safetensors of a set, with config.yaml beside them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, final

from sae.errors import ArtefactError, ConfigError
from sae.interop.foreign_files import ForeignTensors, read_tensors, read_yaml
from sae.interop.foreign_weights import ForeignWeights
from sae.interop.format import Format
from sae.interop.hook_names import our_hook

LAYER = re.compile(r"layer_(\d+)\.safetensors")


@final
class TranscoderLayer(Format):
    """Sets of mwhanna and mntss: ReLU, or JumpReLU where there are thresholds; W_enc (d_sae, d), W_dec (d_sae, d)."""

    writes, files = False, ("layer_*.safetensors",)

    def write(self, weights: ForeignWeights, folder: Path) -> None:
        """Not offered."""
        raise ConfigError("there is no export to circuit-tracer's layout yet; use --to gemma-scope-2 or sparsify.")

    def read(self, path: Path) -> ForeignWeights:
        """One layer_N.safetensors file."""
        layer = LAYER.fullmatch(path.name)
        if layer is None:
            raise ArtefactError(f"{path}: a file called layer_N.safetensors is wanted; a set has one per layer.")

        tensors = ForeignTensors(read_tensors(path), path)
        W_enc, b_enc = tensors.matrix("W_enc"), tensors.vector("b_enc")
        W_dec, b_dec = tensors.matrix("W_dec"), tensors.vector("b_dec")
        names = ("activation_function.threshold", "threshold")
        threshold = next((tensors.vector_or_number(name) for name in names if name in tensors), None)
        extra = {"W_skip": tensors.matrix("W_skip").T} if "W_skip" in tensors else {}
        tensors.check_all_taken()
        if threshold is not None:
            if (threshold < 0).any():
                raise ArtefactError(
                    f"{path}: a threshold is below 0; circuit-tracer then lets negative activations through, and saedex has "
                    f"none."
                )
            extra["threshold"] = threshold.expand_as(b_enc).contiguous()

        weights = ForeignWeights(
            "relu" if threshold is None else "jumprelu",
            W_enc.T,
            b_enc,
            W_dec,
            b_dec=b_dec,
            centred=False,
            extra=extra,
            facts=_facts(path, layer[1]),
        )
        weights.check_shapes()
        return weights


def _facts(path: Path, layer: str) -> dict[str, Any]:
    """Model and hook points by the config.yaml beside the file; without one they are unknown."""
    config = path.parent / "config.yaml"
    if not config.exists():
        return {"target": "unknown"}

    settings = read_yaml(config, "model_name and the two hooks")
    facts: dict[str, Any] = {"model": settings.get("model_name")}
    for key, fact in (("feature_input_hook", "hook"), ("feature_output_hook", "target")):
        point = f"blocks.{layer}.{settings.get(key)}"
        hook = our_hook(point)
        facts |= {fact: hook} if hook else {}
    return {"target": "unknown", **facts}
