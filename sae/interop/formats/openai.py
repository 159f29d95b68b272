"""OpenAI's sparse_autoencoder: a torch file with pre_bias, latent_bias, encoder, decoder; read only."""

from __future__ import annotations

from pathlib import Path
from typing import final

from sae.errors import ArtefactError, ConfigError
from sae.interop.foreign_weights import ForeignWeights
from sae.interop.format import Format, named_tensors, read_tensors


@final
class OpenAi(Format):
    """OpenAI's released state dicts; TopK ones read inputs normalised token by token."""

    writes = False

    def write(self, weights: ForeignWeights, folder: Path) -> None:
        """Not offered."""
        raise ConfigError("there is no export to OpenAI's format; use --to saelens.")

    def read(self, path: Path) -> ForeignWeights:
        """A .pt state dict."""
        tensors = read_tensors(path)
        names = ("encoder.weight", "latent_bias", "decoder.weight", "pre_bias")
        encoder, b_enc, decoder, b_dec = named_tensors(tensors, path, *names)
        activation = tensors.get("activation", "ReLU")
        if activation == "ReLU":
            return ForeignWeights("relu", encoder.T, b_enc, decoder.T, b_dec=b_dec)
        if activation == "TopK":
            k = int(tensors.get("activation_state_dict", {}).get("k", 0))
            return ForeignWeights("topk", encoder.T, b_enc, decoder.T, b_dec=b_dec, k=k, token_norm=True)

        raise ArtefactError(f"{path}: activation {activation!r}; saedex reads ReLU and TopK.")
