"""Temporal sparse autoencoders as they are published: conf.yaml and latest_ckpt.safetensors with D, b, E, attn_layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from sae.errors import ConfigError
from sae.interop.foreign_files import DTYPES, ForeignTensors, read_tensors, read_yaml
from sae.interop.foreign_weights import ForeignWeights
from sae.interop.format import Format
from sae.interop.temporal import TemporalSettings, weights_of_temporal


@final
class Temporal(Format):
    """Folders of the authors of temporal feature analysis."""

    writes, files = False, ("conf.yaml", "latest_ckpt.safetensors")

    def write(self, weights: ForeignWeights, folder: Path) -> None:
        """Not offered."""
        raise ConfigError("there is no export to this layout; keep the dictionary folder itself.")

    def read(self, path: Path) -> ForeignWeights:
        """The folder of one dictionary."""
        config = path / "conf.yaml"
        tree = read_yaml(config, "sae and data")
        sae, data = (_section(tree, name) for name in ("sae", "data"))
        file = path / "latest_ckpt.safetensors"
        tensors = ForeignTensors(read_tensors(file), file, DTYPES.get(str(data.get("dtype", "float32"))))
        settings = TemporalSettings(
            n_layers=sae.get("n_attn_layers"),
            n_heads=sae.get("n_heads"),
            bottleneck=sae.get("bottleneck_factor"),
            kind=sae.get("sae_diff_type"),
            k=sae.get("kval_topk"),
            scale=sae.get("scaling_factor"),
        )
        return weights_of_temporal(tensors, ("E", "D", "b"), settings, path=config, facts={})


def _section(tree: dict[str, Any], name: str) -> dict[str, Any]:
    section = tree.get(name)
    return section if isinstance(section, dict) else {}
