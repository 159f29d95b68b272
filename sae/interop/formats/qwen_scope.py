"""Qwen-Scope: torch files layerN.sae.pt with W_enc (d_sae, d), W_dec (d, d_sae), b_enc, b_dec; TopK, not centred."""

from __future__ import annotations

import re
from pathlib import Path
from typing import final

from sae.errors import ArtefactError, ConfigError
from sae.interop.foreign_files import ForeignTensors, read_tensors
from sae.interop.foreign_weights import ForeignWeights
from sae.interop.format import Format

NAMES = re.compile(r"SAE-Res-(.+)-W(\d+)K-L0_(\d+)")


@final
class QwenScope(Format):
    """Files of Qwen-Scope; k is said by the name of their repository alone, such as SAE-Res-Qwen3-1.7B-Base-W32K-L0_50."""

    writes, files = False, ("layer*.sae.pt",)

    def write(self, weights: ForeignWeights, folder: Path) -> None:
        """Not offered."""
        raise ConfigError("there is no export to Qwen-Scope's format; use --to saelens.")

    def read(self, path: Path) -> ForeignWeights:
        """One layerN.sae.pt file, in a folder that is called like its repository."""
        layer = re.fullmatch(r"layer(\d+)\.sae\.pt", path.name)
        if layer is None:
            raise ArtefactError(f"{path}: a file called layerN.sae.pt is wanted; a repository has one per layer.")
        names = next((match for part in reversed(path.resolve().parts) if (match := NAMES.search(part))), None)

        tensors = ForeignTensors(read_tensors(path), path)
        W_enc, b_enc = tensors.matrix("W_enc"), tensors.vector("b_enc")
        W_dec, b_dec = tensors.matrix("W_dec"), tensors.vector("b_dec")
        tensors.check_all_taken()
        facts = {"hook": f"resid_post.{layer[1]}"} | ({"model": f"Qwen/{names[1]}"} if names else {})
        return ForeignWeights(
            "topk",
            W_enc.T,
            b_enc,
            W_dec.T,
            b_dec=b_dec,
            k=int(names[3]) if names else None,
            centred=False,
            facts=facts,
        )
