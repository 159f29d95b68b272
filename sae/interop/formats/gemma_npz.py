"""Gemma Scope 1: params.npz with W_enc, W_dec, b_enc, b_dec, threshold; the input is not centred."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import final

import numpy as np
import torch

from sae.errors import ArtefactError, ConfigError
from sae.interop.foreign_weights import ForeignWeights
from sae.interop.format import Format, named_tensors


@final
class GemmaNpz(Format):
    """Gemma Scope's JumpReLU files."""

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
            (folder / "LOSSY.txt").write_text(weights.lossy + "\n")

    def read(self, path: Path) -> ForeignWeights:
        """A params.npz file, or the folder that holds one."""
        file = path / "params.npz" if path.is_dir() else path
        try:
            with np.load(file, allow_pickle=False) as arrays:
                tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        except (OSError, zipfile.BadZipFile) as error:
            raise ArtefactError(f"{file}: cannot be read as npz ({error}).") from None
        except (ValueError, TypeError):
            raise ArtefactError(f"{file}: holds pickled objects; saedex does not run them.") from None

        tensors = {name.replace("w_", "W_"): t for name, t in tensors.items()}
        W_enc, b_enc, W_dec, b_dec, threshold = named_tensors(
            tensors, file, "W_enc", "b_enc", "W_dec", "b_dec", "threshold"
        )
        return ForeignWeights(
            "jumprelu", W_enc, b_enc, W_dec, b_dec=b_dec, centred=False, extra={"threshold": threshold}
        )
