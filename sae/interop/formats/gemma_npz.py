"""Gemma Scope 1: params.npz with W_enc, W_dec, b_enc, b_dec, threshold; the input is not centred."""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np
import torch

from sae.errors import ConfigError
from sae.interop.foreign_files import ForeignTensors, read_arrays
from sae.interop.foreign_weights import ForeignWeights
from sae.interop.format import Format


@final
class GemmaNpz(Format):
    """Gemma Scope's JumpReLU files."""

    files = ("*.npz",)

    def write(self, weights: ForeignWeights, folder: Path) -> None:
        """params.npz."""
        if weights.kind not in ("jumprelu", "relu") or weights.token_norm or "W_skip" in weights.extra:
            raise ConfigError(
                f"Gemma Scope's format holds JumpReLU; this one computes as {weights.kind}. Use --to saelens."
            )

        free = weights.as_centred(False)
        threshold = free.extra.get("threshold", torch.zeros_like(free.b_enc))
        arrays = {
            "W_enc": free.W_enc,
            "W_dec": free.W_dec,
            "b_enc": free.b_enc,
            "b_dec": free.b_dec,
            "threshold": threshold,
        }
        np.savez(folder / "params.npz", **{name: t.numpy() for name, t in arrays.items()})  # pyright: ignore
        if weights.lossy:
            (folder / "LOSSY.txt").write_text(weights.lossy + "\n", encoding="utf-8")

    def read(self, path: Path) -> ForeignWeights:
        """A params.npz file, or the folder that holds one."""
        file = path / "params.npz" if path.is_dir() else path
        arrays = {name.replace("w_", "W_"): array for name, array in read_arrays(file).items()}
        tensors = ForeignTensors(arrays, file)
        W_enc, b_enc = tensors.matrix("W_enc"), tensors.vector("b_enc")
        W_dec, b_dec = tensors.matrix("W_dec"), tensors.vector("b_dec")
        threshold = tensors.vector("threshold").clamp_min(0)  # theirs is ReLU(z) 1[z > t], so t < 0 does what 0 does
        tensors.check_all_taken()
        return ForeignWeights(
            "jumprelu", W_enc, b_enc, W_dec, b_dec=b_dec, centred=False, extra={"threshold": threshold}
        )
