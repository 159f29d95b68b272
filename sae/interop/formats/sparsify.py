"""sparsify: cfg.json and sae.safetensors, encoder in torch's layout and decoder latent by latent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import final

from safetensors.torch import save_file

from sae.errors import ArtefactError, ConfigError
from sae.interop.foreign_weights import ForeignWeights
from sae.interop.format import Format, named_tensors, read_json, read_tensors


@final
class Sparsify(Format):
    """Hook point folders of sparsify: TopK, and TopK transcoders with or without skip."""

    def write(self, weights: ForeignWeights, folder: Path) -> None:
        """cfg.json and sae.safetensors."""
        if weights.kind != "topk" or weights.token_norm:
            raise ConfigError(
                f"sparsify holds TopK dictionaries; this one computes as {weights.kind}. Use --to saelens."
            )

        if not weights.centred and weights.W_enc.shape[0] != weights.W_dec.shape[1]:
            raise ConfigError("sparsify needs input and output of the same width.")

        d_in, d_sae = weights.W_enc.shape
        tensors = {
            "encoder.weight": weights.W_enc.T,
            "encoder.bias": weights.b_enc,
            "W_dec": weights.W_dec,
            "b_dec": weights.b_dec,
        }
        tensors |= {"W_skip": weights.extra["W_skip"].T} if "W_skip" in weights.extra else {}
        cfg = {
            "activation": "topk", "expansion_factor": max(1, d_sae // d_in), "normalize_decoder": weights.centred,
            "num_latents": d_sae, "k": weights.k, "multi_topk": False, "skip_connection": "W_skip" in weights.extra,
            "transcode": not weights.centred, "d_in": d_in,
        }  # fmt: skip
        save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "sae.safetensors")
        (folder / "cfg.json").write_text(json.dumps(cfg, indent=1))

    def read(self, path: Path) -> ForeignWeights:
        """A hook point folder."""
        cfg = read_json(path / "cfg.json")
        if cfg.get("activation", "topk") != "topk" or cfg.get("signed"):
            raise ArtefactError(f"{path}: activation {cfg.get('activation')!r}; saedex reads unsigned topk.")

        file = path / "sae.safetensors"
        tensors = read_tensors(file)
        encoder, b_enc, W_dec, b_dec = named_tensors(tensors, file, "encoder.weight", "encoder.bias", "W_dec", "b_dec")
        extra = {"W_skip": tensors["W_skip"].float().T} if "W_skip" in tensors else {}
        facts = {"target": "mlp_out.0"} if cfg.get("transcode") else {}

        return ForeignWeights(
            "topk",
            encoder.T,
            b_enc,
            W_dec,
            b_dec=b_dec,
            k=cfg.get("k"),
            centred=not cfg.get("transcode"),
            extra=extra,
            facts=facts,
        )
