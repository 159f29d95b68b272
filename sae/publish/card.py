"""What card.json says of a dictionary's weights: their files with hashes, and the module that they must fit."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from feature_store.dictionary_files import DictionaryCard, JsonFileError
from sae.architectures import ARCHITECTURES, ArchitectureConfig, SparseAutoencoder, build
from sae.errors import ArtefactError
from sae.foundation.section import describe_problems

WEIGHTS = "weights.safetensors"
SHARD_NAME = re.compile(r"weights-\d{5}-of-\d{5}\.safetensors")
MOST_NUMBERS = 1 << 48  # of one matrix: far more than any machine holds, and still a size that torch can count


def read_card(folder: Path) -> DictionaryCard:
    """card.json of a dictionary folder; raises `ArtefactError` if there is none or its format is not known."""
    try:
        return DictionaryCard.read(folder)
    except JsonFileError as error:
        raise ArtefactError(str(error)) from None


def joint_sha256(files: dict[str, str]) -> str:
    """The hash of weights that lie in several files: that of the files' hashes in the order of their names."""
    return hashlib.sha256("".join(sha256 for _, sha256 in sorted(files.items())).encode()).hexdigest()


def weights_files(card: DictionaryCard, where: str) -> dict[str, str]:
    """Name and SHA-256 of every file of weights.

    A card may come from a stranger. It raises `ArtefactError` if a name is none that `publish` gives, so that no path
    can be said, and if the hash of the whole is not that of the files.
    """
    if card.weights_files is None:
        return {WEIGHTS: card.weights_sha256}

    if not card.weights_files:
        raise ArtefactError(
            f"{where}: it has no weights, only pages of features that were published elsewhere. It can be looked at and "
            f"searched (sae serve), but it encodes nothing. Open the dictionary itself with sae open."
        )

    if not all(map(SHARD_NAME.fullmatch, card.weights_files)):
        names = ", ".join(card.weights_files)
        raise ArtefactError(f"{where}: its card names files that are no weights: {names}.")

    if joint_sha256(card.weights_files) != card.weights_sha256:
        raise ArtefactError(
            f"{where}: its card gives weights_sha256 {card.weights_sha256}, but the hashes of its weights_files make "
            f"{joint_sha256(card.weights_files)}. Take the dictionary again from where it comes."
        )
    return card.weights_files


def widths_of(card: DictionaryCard, where: str) -> tuple[int, int]:
    """(numbers that a token has, numbers that are reconstructed); raises `ArtefactError` if there are no weights."""
    weights_files(card, where)
    if card.d_model is None or card.d_out is None:
        raise ArtefactError(f"{where}: its card says neither d_model nor d_out. Take it again from where it comes.")
    return card.d_model, card.d_out


def config_of(settings: dict[str, Any], where: str) -> ArchitectureConfig:
    """The settings of an architecture; raises `ArtefactError` with all that is wrong in them."""
    architecture = settings.get("architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ArtefactError(f"{where}: architecture {architecture!r} is not known; known: {', '.join(ARCHITECTURES)}.")

    config_class = ARCHITECTURES[architecture].config_class
    try:
        return config_class.model_validate(settings)
    except ValidationError as error:
        raise ArtefactError(f"{where}: {'; '.join(describe_problems(error, config_class))}.") from None


def module_without_weights(card: DictionaryCard, where: str) -> SparseAutoencoder:
    """The module that a card describes, on torch's meta device: shapes without memory."""
    config = config_of(card.sae, where)
    d_in, d_out = widths_of(card, where)
    if config.d_sae * max(d_in, d_out) > MOST_NUMBERS:
        raise ArtefactError(f"{where}: {config.d_sae} latents of {d_in} numbers are more than saedex can count.")

    with torch.device("meta"):
        return build(config, d_in, d_out, getattr(torch, card.selection_dtype))


def weights_bytes(sae: SparseAutoencoder) -> int:
    """Bytes of all weights of a module."""
    return sum(tensor.numel() * tensor.element_size() for tensor in sae.state_dict().values())
