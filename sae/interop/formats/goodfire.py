"""Goodfire: torch files with encoder_linear and decoder_linear; ReLU, not centred."""

from __future__ import annotations

import re
from pathlib import Path
from typing import final

from sae.errors import ConfigError
from sae.interop.foreign_files import ForeignTensors, holds, read_tensors
from sae.interop.foreign_weights import ForeignWeights
from sae.interop.format import Format

NAMES = re.compile(r"(Llama-[\d.]+-\d+B-Instruct)-SAE-l(\d+)\.pth?")


@final
class Goodfire(Format):
    """Files of Goodfire's releases for Llama; the name of the file says model and layer."""

    writes, files = False, ("*-SAE-l*.pt*",)

    def recognises(self, path: Path) -> bool:
        """A torch file with the two linear layers."""
        return path.is_file() and path.suffix in (".pt", ".pth") and holds(path, "encoder_linear.weight")

    def write(self, weights: ForeignWeights, folder: Path) -> None:
        """Not offered."""
        raise ConfigError("there is no export to Goodfire's format; use --to saelens.")

    def read(self, path: Path) -> ForeignWeights:
        """A .pt or .pth state dict."""
        tensors = ForeignTensors(read_tensors(path), path)
        encoder, b_enc = tensors.matrix("encoder_linear.weight"), tensors.vector("encoder_linear.bias")
        decoder, b_dec = tensors.matrix("decoder_linear.weight"), tensors.vector("decoder_linear.bias")
        tensors.check_all_taken()
        names = NAMES.fullmatch(path.name)
        facts = {"model": f"meta-llama/{names[1]}", "hook": f"resid_post.{names[2]}"} if names else {}
        return ForeignWeights("relu", encoder.T, b_enc, decoder.T, b_dec=b_dec, centred=False, facts=facts)
