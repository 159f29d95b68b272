"""What a foreign format is: weights to files and back. No code that is read is ever executed."""

from __future__ import annotations

import json
import pickle
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae.errors import ArtefactError
from sae.interop.foreign_weights import ForeignWeights


class Format(ABC):
    """A library's way to keep a dictionary. The name of its file in `formats/` is its name on the command line."""

    writes: ClassVar[bool] = True  # whether it can be exported to

    @abstractmethod
    def write(self, weights: ForeignWeights, folder: Path) -> None:
        """Writes the files; raises `ConfigError` if the format cannot hold this kind of dictionary."""

    @abstractmethod
    def read(self, path: Path) -> ForeignWeights:
        """The dictionary in a folder or file; raises `ArtefactError` if there is none."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot be read as JSON ({error}).") from None
    if not isinstance(value, dict):
        raise ArtefactError(f"{path}: expected a JSON object.")
    return value


def read_tensors(path: Path) -> dict[str, Any]:
    """Tensors of a safetensors file, or of a torch file that holds nothing but plain data."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ArtefactError(f"{path}: holds pickled objects besides tensors; saedex does not run them.") from None
    except (OSError, SafetensorError, RuntimeError, EOFError) as error:
        raise ArtefactError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}).") from None

    if not isinstance(tensors, dict):
        raise ArtefactError(f"{path}: holds a {type(tensors).__name__}, expected a table of named tensors.")

    return tensors


def named_tensors(tensors: dict[str, Any], path: Path, *names: str) -> list[Float[Tensor, " ..."]]:
    """The tensors of these names in float32; raises `ArtefactError` with the names that are missing."""
    missing_names = [name for name in names if not isinstance(tensors.get(name), Tensor)]
    if missing_names:
        raise ArtefactError(f"{path}: no tensor {', '.join(missing_names)}; it holds {', '.join(sorted(tensors))}.")
    return [tensors[name].float() for name in names]
