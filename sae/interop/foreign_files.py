"""What foreign files hold, read as the word of a stranger: JSON, tensors and numbers, or `ArtefactError`."""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from sae.errors import ArtefactError, SaedexError

DTYPES = {
    "float32": torch.float32, "torch.float32": torch.float32, "float16": torch.float16, "torch.float16": torch.float16,
    "bfloat16": torch.bfloat16, "torch.bfloat16": torch.bfloat16, "float64": torch.float64,
    "torch.float64": torch.float64,
}  # fmt: skip
MOST_JSON_BYTES, MOST_YAML_BYTES = 16 << 20, 1 << 20
MOST_UNPACKED = 16  # times the size of an archive; numbers of trained weights hardly pack at all
NUMPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@contextmanager
def parsing(path: Path) -> Iterator[None]:
    """Turns what the parsers of other libraries raise into `ArtefactError`; on damaged files they raise anything."""
    try:
        yield
    except SaedexError:
        raise
    except pickle.UnpicklingError:
        raise ArtefactError(f"{path}: holds pickled objects besides tensors; saedex does not run them.") from None
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ArtefactError(f"{path}: cannot be read ({reason}).") from None


def _text(path: Path, kind: str, most: int) -> str:
    with parsing(path):
        if path.stat().st_size > most:
            raise ArtefactError(f"{path}: {path.stat().st_size:,} bytes of {kind}; allowed are {most:,}.")
        return path.read_text("utf-8")


def read_yaml(path: Path, holds: str) -> dict[str, Any]:
    """A YAML mapping in a file, which `holds` what an error then says."""
    text = _text(path, "YAML", MOST_YAML_BYTES)
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ArtefactError(f"{path}: cannot be read as YAML ({' '.join(str(error).split()):.200}).") from None

    if not isinstance(value, dict):
        raise ArtefactError(f"{path}: expected a mapping with {holds}.")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file."""
    text = _text(path, "JSON", MOST_JSON_BYTES)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path}: cannot be read as JSON ({error}).") from None

    if not isinstance(value, dict):
        raise ArtefactError(f"{path}: expected a JSON object.")
    return value


def read_tensors(path: Path) -> dict[str, Any]:
    """Tensors of a safetensors file, or of a torch file that holds nothing but plain data."""
    with parsing(path):
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _check_unpacked(archive, path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)

    if not isinstance(tensors, dict):
        raise ArtefactError(f"{path}: holds a {type(tensors).__name__}, expected a table of named tensors.")
    return tensors


def holds(path: Path, name: str) -> bool:
    """Whether a torch file of plain data has an entry of that name; its tensors are mapped, not read."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception:  # whatever a damaged file raises: it holds nothing by that name
        return False
    return isinstance(tensors, dict) and name in tensors


def read_arrays(path: Path) -> dict[str, Any]:
    """Arrays of an npz file; the headers of all are checked before one is read."""
    with parsing(path), zipfile.ZipFile(path) as archive:
        _check_unpacked(archive, path)
        for member in archive.infolist():
            _check_array(archive, member, path)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _check_unpacked(archive: zipfile.ZipFile, path: Path) -> None:
    """Raises `ArtefactError` if a small archive says that it unpacks to a large one."""
    unpacked, packed = sum(member.file_size for member in archive.infolist()), path.stat().st_size
    if unpacked > MOST_UNPACKED * packed:
        raise ArtefactError(
            f"{path}: its {packed:,} bytes unpack to {unpacked:,}, allowed is {MOST_UNPACKED} times as much. Nothing was "
            f"unpacked. If you trust the file, save it without compression and import that."
        )


def _check_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """Raises `ArtefactError` unless a member is an array of floats whose shape fits its size."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        shape, _, dtype = NUMPY_HEADERS[version](file)
        if dtype.hasobject:
            raise ArtefactError(f"{path}: {member.filename} holds pickled objects; saedex does not run them.")
        if dtype.kind != "f" or file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ArtefactError(
                f"{path}: {member.filename} says that it holds {dtype} {list(shape)} in {member.file_size:,} bytes; floats "
                f"that fill their bytes are wanted."
            )


class ForeignTensors:
    """Named tensors of a foreign file: a format takes those that it knows, in float32, and refuses any that are left.

    `dtype` is the one in which the other library computes, if it is not that of the file.
    """

    def __init__(self, tensors: dict[str, Any], path: Path, dtype: torch.dtype | None = None):
        self._left = dict(tensors)
        self._path, self._dtype = path, dtype
        self._names = ", ".join(sorted(map(str, tensors))) or "nothing"

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def names(self) -> list[str]:
        """The names that are left."""
        return [str(name) for name in self._left]

    def pop(self, name: str, default: Any = None) -> Any:
        """What is there under a name, whatever it is."""
        return self._left.pop(name, default)

    def rank(self, name: str) -> int:
        """How many dimensions the tensor of that name has; 0 if there is none."""
        tensor = self._left.get(name)
        return tensor.dim() if isinstance(tensor, Tensor) else 0

    def matrix(self, name: str) -> Float[Tensor, "_rows _columns"]:
        """The matrix of that name; raises `ArtefactError` if there is none."""
        return self._take(name, (2,))

    def table_of_tables(self, name: str) -> Float[Tensor, "_a _b _c"]:
        """The tensor of three dimensions of that name; raises `ArtefactError` if there is none."""
        return self._take(name, (3,))

    def vector(self, name: str) -> Float[Tensor, " _n"]:
        """The vector of that name; raises `ArtefactError` if there is none."""
        return self._take(name, (1,))

    def vector_or_number(self, name: str) -> Float[Tensor, " *n"]:
        """The vector or single number of that name; raises `ArtefactError` if there is none."""
        return self._take(name, (0, 1))

    def _take(self, name: str, ranks: tuple[int, ...]) -> Tensor:
        tensor = self.pop(name)
        if not isinstance(tensor, Tensor):
            raise ArtefactError(f"{self._path}: no tensor {name}; it holds {self._names}.")

        is_plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.is_floating_point()
        if not is_plain or tensor.dim() not in ranks:
            expected = " or ".join(("a number", "a vector", "a matrix", "a table of matrices")[rank] for rank in ranks)
            raise ArtefactError(
                f"{self._path}: {name} is {tensor.dtype} {list(tensor.shape)} ({tensor.layout}), expected is {expected} of "
                f"floats."
            )

        # A view can say a shape that is far larger than what is there, and a copy would then fill the memory.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ArtefactError(f"{self._path}: {name} says {list(tensor.shape)}, but the file holds fewer numbers.")
        return tensor.detach().to(self._dtype or tensor.dtype).float()

    def check_all_taken(self) -> None:
        """Raises `ArtefactError` if something is left that could have a part in the result."""
        if self._left:
            raise ArtefactError(
                f"{self._path}: it also holds {', '.join(sorted(map(str, self._left)))}, of which saedex does not know what "
                f"they do to codes and reconstructions."
            )


def check_keys(settings: dict[str, Any], path: Path, known: frozenset[str]) -> None:
    """Raises `ArtefactError` if a config says something of which saedex does not know what it does."""
    unknown_keys = sorted(settings.keys() - known)
    if unknown_keys:
        raise ArtefactError(
            f"{path}: saedex does not know what {', '.join(unknown_keys)} does to codes and reconstructions. If it does "
            f"nothing to them, remove it from the file."
        )


def choice(settings: dict[str, Any], key: str, path: Path, allowed: tuple[Any, ...]) -> Any:
    """The value of a key, the first of `allowed` if it is absent; raises `ArtefactError` for any other than those."""
    value = settings.get(key, allowed[0])
    if not any(value is known or (isinstance(value, str) and value == known) for known in allowed):
        raise ArtefactError(f"{path}: {key} is {value!r}; saedex reads {', '.join(map(repr, allowed))}.")
    return value


def check_sizes(settings: dict[str, Any], path: Path, sizes: dict[str, int]) -> None:
    """Raises `ArtefactError` if a config says other sizes than the tensors have."""
    for key, size in sizes.items():
        value = settings.get(key, size)
        if value != size or isinstance(value, bool):
            raise ArtefactError(f"{path}: {key} is {value!r}, but the tensors have {size}.")


def whole_number(value: Any) -> Any:
    """A tensor of one whole number as that number, another tensor as a text; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    is_whole = value.dim() == 0 and not value.is_floating_point() and value.device.type == "cpu"
    return value.item() if is_whole else f"{value.dtype} {list(value.shape)}"
