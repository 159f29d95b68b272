"""sparsify: cfg.json and sae.safetensors, encoder in torch's layout and decoder latent by latent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import final

from safetensors.torch import save_file

from sae.errors import ArtefactError, ConfigError
from sae.interop.foreign_files import ForeignTensors, check_keys, check_sizes, choice, read_json, read_tensors
from sae.interop.foreign_weights import ForeignWeights
from sae.interop.format import Format

KEYS = frozenset({
    "activation", "d_in", "expansion_factor", "k", "multi_topk", "normalize_decoder", "num_latents", "signed",
    "skip_connection", "transcode",
})  # fmt: skip


@final
class Sparsify(Format):
    """Hook point folders of sparsify: TopK, and TopK transcoders with or without skip."""

    files = ("cfg.json", "sae.safetensors")

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
        (folder / "cfg.json").write_text(json.dumps(cfg, indent=1), encoding="utf-8")

    def read(self, path: Path) -> ForeignWeights:
        """A hook point folder, which sparsify calls after the module whose output it reconstructs."""
        config = path / "cfg.json"
        cfg = read_json(config)
        check_keys(cfg, config, KEYS)
        choice(cfg, "activation", config, ("topk",))
        choice(cfg, "signed", config, (False,))
        transcodes = choice(cfg, "transcode", config, (False, True))
        skips = choice(cfg, "skip_connection", config, (False, True))

        file = path / "sae.safetensors"
        tensors = ForeignTensors(read_tensors(file), file)
        encoder, b_enc = tensors.matrix("encoder.weight"), tensors.vector("encoder.bias")
        W_dec, b_dec = tensors.matrix("W_dec"), tensors.vector("b_dec")
        extra = {"W_skip": tensors.matrix("W_skip").T} if skips else {}
        tensors.check_all_taken()
        check_sizes(cfg, config, {"d_in": encoder.shape[1]})
        if cfg.get("num_latents"):  # 0 means: expansion_factor times d_in
            check_sizes(cfg, config, {"num_latents": encoder.shape[0]})
        if skips and not transcodes:
            raise ArtefactError(f"{config}: an autoencoder with a skip connection; saedex has it in transcoders only.")

        facts = {"target": "unknown"} if transcodes else _hook_of(path.resolve().name)
        return ForeignWeights(
            "topk",
            encoder.T,
            b_enc,
            W_dec,
            b_dec=b_dec,
            k=cfg.get("k"),
            centred=not transcodes,
            extra=extra,
            facts=facts,
        )


def _hook_of(name: str) -> dict[str, str]:
    """The hook point of a folder called like a block. What attention and MLP give, some models normalise before they add
    it to the stream, so that a folder called like one of these does not say which of both it is."""
    match = re.fullmatch(r"(?:[a-z_]+\.)*(?:layers|h|blocks)\.(\d+)", name)
    return {"hook": f"resid_post.{match[1]}"} if match else {"hook_of_file": name}
