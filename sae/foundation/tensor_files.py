"""Tensors in safetensors files, whole or in the pieces of several processes; written together, read in part."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Shaped
from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae.errors import ArtefactError
from sae.foundation.distributed import Processes
from sae.foundation.downloads import sha256_of
from sae.foundation.files import temporary_of, write_folder

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32}


class Piece(NamedTuple):
    """One process's part of a tensor: its values, the axis that is cut, and where the part begins on that axis."""

    tensor: Shaped[Tensor, " ..."]
    axis: int
    start: int


def tensors_to_write(
    tensors: dict[str, Shaped[Tensor, " ..."] | Piece], processes: Processes
) -> dict[str, Shaped[Tensor, " ..."] | Piece]:
    """The tensors that this process writes: its own pieces; the first process also writes everything replicated."""
    return tensors if processes.is_first else {name: t for name, t in tensors.items() if isinstance(t, Piece)}


def save_tensors(path: Path, tensors: dict[str, Shaped[Tensor, " ..."] | Piece]) -> str:
    """Writes tensors and pieces to one file; returns its SHA-256. The same tensors give the same bytes."""
    pieces = {name: [t.axis, t.start] for name, t in tensors.items() if isinstance(t, Piece)}
    values = {name: t.tensor if isinstance(t, Piece) else t for name, t in tensors.items()}
    on_cpu = {name: t.detach().contiguous().cpu() for name, t in values.items()}
    # safetensors writes several entries in random order, so there is one alone.
    save_file(on_cpu, path, metadata={"pieces": json.dumps(pieces, sort_keys=True)})
    return sha256_of(path)


class TensorForm(NamedTuple):
    """Type and shape of a tensor."""

    dtype: torch.dtype | None  # None: one that saedex does not write
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


class _Location(NamedTuple):
    """Where a piece of a tensor is stored: its start on the axis that is cut, that axis, the file, and its form."""

    start: int
    axis: int
    path: Path
    form: TensorForm


class TensorFiles:
    """Tensors by name in several files, of which some are cut into pieces; reads only what it is asked for.

    safetensors itself checks that sizes and offsets of a file's header fit the file; here it is checked that the pieces
    of a tensor follow one another. Raises `ArtefactError` otherwise.
    """

    def __init__(self, paths: list[Path]):
        self._locations: dict[str, list[_Location]] = {}
        for path in paths:
            with safe_open(path, "pt") as file:
                pieces = _pieces(file.metadata(), path)
                for name in file.keys():  # noqa: SIM118 (not a dictionary)
                    axis, start = pieces.get(name, (0, 0))
                    stored = file.get_slice(name)
                    form = TensorForm(DTYPES.get(stored.get_dtype()), tuple(stored.get_shape()))
                    self._locations.setdefault(name, []).append(_Location(start, axis, path, form))

        for name, locations in self._locations.items():
            locations.sort(key=lambda location: location.start)
            _check_pieces(name, locations)

    def __contains__(self, name: str) -> bool:
        return name in self._locations

    def names(self) -> list[str]:
        """Names of all tensors."""
        return sorted(self._locations)

    def form(self, name: str) -> TensorForm:
        """Type and shape of the whole tensor."""
        first, *rest = self._locations[name]
        shape = list(first.form.shape)
        for location in rest:
            shape[first.axis] += location.form.shape[first.axis]
        return TensorForm(first.form.dtype, tuple(shape))

    def read(self, name: str, part: slice | None = None) -> Shaped[Tensor, " ..."]:
        """The tensor, or a part of it along the axis that it was cut on."""
        pieces = []
        for start, axis, path, _ in self._locations[name]:
            with safe_open(path, "pt") as file:
                if part is None:
                    pieces.append(file.get_tensor(name))
                    continue
                stored = file.get_slice(name)
                first, last = max(part.start - start, 0), min(part.stop - start, stored.get_shape()[axis])
                if first < last:
                    pieces.append(stored[:, first:last] if axis else stored[first:last])

        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=self._locations[name][0].axis)


def _pieces(metadata: dict[str, str] | None, path: Path) -> Mapping[str, tuple[int, int]]:
    """Axis and start of every piece in a file, by the name of its tensor."""
    text = (metadata or {}).get("pieces", "{}")
    try:
        return TypeAdapter(dict[str, tuple[Literal[0, 1], NonNegativeInt]]).validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise ArtefactError(f"{path}: its header says wrongly which pieces of tensors it holds ({problem}).") from None


def _check_pieces(name: str, locations: list[_Location]) -> None:
    """Raises `ArtefactError` unless the pieces have one type, one axis and one cross-section, and leave no gap."""
    axis, form = locations[0].axis, locations[0].form
    end = 0
    for location in locations:
        shape = location.form.shape
        is_alike = location.axis == axis and location.form.dtype == form.dtype and len(shape) == len(form.shape)
        is_alike = is_alike and all(a == b for i, (a, b) in enumerate(zip(shape, form.shape, strict=True)) if i != axis)
        if not is_alike or location.start != end:
            raise ArtefactError(
                f"{location.path}: its piece of {name} begins at {location.start} and is {location.form}; the pieces before "
                f"it end at {end} and are {form}."
            )
        end += shape[axis] if axis < len(shape) else 1


def finite(tensor: Shaped[Tensor, " ..."], where: str) -> Shaped[Tensor, " ..."]:
    """The tensor; raises `ArtefactError` if a number in it is not finite."""
    wrong = tensor.numel() - int(torch.isfinite(tensor).sum())
    if wrong:
        raise ArtefactError(f"{where}: {wrong} of {tensor.numel()} numbers are not finite (NaN or infinite).")
    return tensor


def write_folder_together(folder: Path, fill: Callable[[Path], None], processes: Processes) -> None:
    """As `write_folder`, but every process fills the same folder; returns when the folder has its name."""

    def fill_when_created(temporary: Path) -> None:
        processes.barrier()
        fill(temporary)

    if processes.is_first:
        write_folder(folder, fill_when_created)
    else:
        fill_when_created(temporary_of(folder))

    processes.barrier()
