"""OpenAI's sparse_autoencoder: a torch file with pre_bias, latent_bias, encoder, decoder; read only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from sae.errors import ArtefactError, ConfigError
from sae.interop.foreign_files import ForeignTensors, check_keys, choice, holds, read_tensors, whole_number
from sae.interop.foreign_weights import ForeignWeights
from sae.interop.format import Format


@final
class OpenAi(Format):
    """OpenAI's released state dicts; TopK ones read inputs normalised token by token."""

    writes, files = False, ("*.pt",)

    def recognises(self, path: Path) -> bool:
        """A torch file; other libraries write such files too, and what it holds decides."""
        return path.is_file() and path.suffix == ".pt" and holds(path, "latent_bias")

    def write(self, weights: ForeignWeights, folder: Path) -> None:
        """Not offered."""
        raise ConfigError("there is no export to OpenAI's format; use --to saelens.")

    def read(self, path: Path) -> ForeignWeights:
        """A .pt state dict."""
        tensors = ForeignTensors(read_tensors(path), path)
        activation = tensors.pop("activation", "ReLU")
        settings = tensors.pop("activation_state_dict", {})
        tensors.pop("stats_last_nonzero")
        encoder, b_enc = tensors.matrix("encoder.weight"), tensors.vector("latent_bias")
        decoder, b_dec = tensors.matrix("decoder.weight"), tensors.vector("pre_bias")
        tensors.check_all_taken()
        shared: Any = {"W_enc": encoder.T, "b_enc": b_enc, "W_dec": decoder.T, "b_dec": b_dec}

        if activation == "ReLU" and not settings:
            return ForeignWeights("relu", **shared)
        if activation == "TopK" and isinstance(settings, dict):
            check_keys(settings, path, frozenset({"k", "postact_fn"}))
            choice(settings, "postact_fn", path, ("ReLU",))
            return ForeignWeights("topk", k=whole_number(settings.get("k")), token_norm=True, **shared)

        raise ArtefactError(f"{path}: activation {activation!r} with {settings!r:.100}; saedex reads ReLU and TopK.")
