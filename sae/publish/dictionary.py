"""The published dictionary: a folder with card.json and weights; written whole, loaded from a path or an address."""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from jaxtyping import Shaped
from safetensors import SafetensorError
from torch import Tensor

from feature_store.dictionary_files import DictionaryCard, Provenance
from sae.architectures import ArchitectureConfig, SparseAutoencoder, build
from sae.errors import ArtefactError
from sae.foundation.distributed import Processes
from sae.foundation.downloads import sha256_of
from sae.foundation.files import write_folder
from sae.foundation.hub import HUB, Place, fetch, files_of, place_of_address
from sae.foundation.tensor_files import (
    Piece,
    TensorFiles,
    TensorForm,
    finite,
    save_tensors,
    tensors_to_write,
    write_folder_together,
)
from sae.publish.card import WEIGHTS, joint_sha256, module_without_weights, read_card, weights_files, widths_of
from sae.publish.download import download

LARGEST_JOINED_BYTES = 8 << 30


def now() -> str:
    """The present second, as cards have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a dictionary is made with."""
    names = ("saedex", "torch", "transformers", "datasets", "numpy", "numba", "duckdb")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def publish(
    folder: Path,
    sae: SparseAutoencoder,
    provenance: Provenance,
    write: Callable[[Path, Callable[[Path], None]], None] = write_folder,
) -> None:
    """Writes a dictionary folder. `sae` takes activations in the language model's own units.

    `write` decides what happens if the folder exists: by default it is replaced.
    """

    def fill(target: Path) -> None:
        sha256 = save_tensors(target / WEIGHTS, dict(sae.state_dict()))
        (target / WEIGHTS).chmod(0o644)  # safetensors makes files private, but a published dictionary is for everybody
        _card(sae, sae.config, provenance, {"weights_sha256": sha256}).write(target)

    folder.parent.mkdir(parents=True, exist_ok=True)
    write(folder, fill)


def publish_shards(
    folder: Path,
    sae: SparseAutoencoder,
    config: ArchitectureConfig,
    *,
    tensors: dict[str, Shaped[Tensor, " ..."] | Piece],
    provenance: Provenance,
    processes: Processes,
) -> None:
    """Writes a dictionary whose latents are spread over processes; each process writes the file of its own latents.

    Shards of up to `LARGEST_JOINED_BYTES` together are joined into one file. A larger dictionary stays in shards, and
    its hash is that of the shards' hashes.
    """
    name = f"weights-{processes.rank:05d}-of-{processes.world_size:05d}.safetensors"  # see SHARD_NAME

    def fill(target: Path) -> None:
        own_sha256 = save_tensors(target / name, tensors_to_write(tensors, processes))
        files = dict(processes.all_gather_objects((name, own_sha256)))
        if not processes.is_first:
            return

        shards = [target / file for file in files]
        weights: dict[str, Any] = {"weights_sha256": joint_sha256(files), "weights_files": files}
        if sum(path.stat().st_size for path in shards) <= LARGEST_JOINED_BYTES:
            stored = TensorFiles(shards)
            sha256 = save_tensors(target / WEIGHTS, {name: stored.read(name) for name in stored.names()})
            weights = {"weights_sha256": sha256}
            for path in shards:
                path.unlink()

        for path in target.glob("weights*"):
            path.chmod(0o644)

        _card(sae, config, provenance, weights).write(target)

    write_folder_together(folder, fill, processes)


def _card(
    sae: SparseAutoencoder, config: ArchitectureConfig, provenance: Provenance, weights: dict[str, Any]
) -> DictionaryCard:
    return DictionaryCard(
        format_version=DictionaryCard.current_version,
        name=config.name,
        created=now(),
        d_model=sae.d_in,
        d_out=sae.d_out,
        sae=config.model_dump(mode="json"),
        selection_dtype=str(sae.selection_dtype).removeprefix("torch."),  # pyright: ignore[reportArgumentType]
        versions=versions(),
        **weights,
        **provenance.model_dump(exclude_unset=True),
    )


def load(path_or_url: str | Path) -> SparseAutoencoder:
    """The module of a dictionary; hashes are checked.

    It is a folder, the address of a server's `/api/v1/dictionaries/{name}`, or a place on the hub:
    `hf://OWNER/NAME[@REVISION][/FOLDER]`.
    """
    folder = _folder_of(str(path_or_url))
    card = read_card(folder)
    files = weights_files(card, str(folder))
    for name, sha256 in files.items():
        _check_weights(folder / name, sha256)

    wanted = module_without_weights(card, str(folder))
    try:
        stored = TensorFiles([folder / name for name in files])
    except SafetensorError as error:
        raise ArtefactError(f"{folder}: the weights cannot be read ({error}).") from None
    _check_shapes(stored, wanted, folder)

    sae = build(wanted.config, *widths_of(card, str(folder)), wanted.selection_dtype)
    sae.load_state_dict({name: finite(stored.read(name), f"{folder}: {name}") for name in stored.names()})

    return sae.eval().requires_grad_(False)


def _folder_of(text: str) -> Path:
    if text.lower().startswith(("http://", "https://")):
        return download(text)
    if text.startswith(HUB):
        place = dictionary_place(place_of_address(text))
        files = (f"{place.inside}{DictionaryCard.file_name}", f"{place.inside}weights*.safetensors")
        return fetch(place.repo, files, place.revision) / place.inside
    return Path(text)


def dictionary_place(place: Place) -> Place:
    """Where the only dictionary folder lies at a place of the hub; raises `ArtefactError` if there is none, or several."""
    names = [name for name in files_of(place.repo, place.revision) if name.startswith(place.inside)]
    folders = [
        str(PurePosixPath(name).parent) for name in names if PurePosixPath(name).name == DictionaryCard.file_name
    ]
    if not folders:
        raise ArtefactError(
            f"{place}: no dictionary folder of saedex there. `sae open {place}` reads what other libraries write."
        )
    if len(folders) > 1:
        raise ArtefactError(
            f"{place}: {len(folders)} dictionaries are there: {', '.join(folders[:8])}. Name one of them."
        )
    return place._replace(path=None if folders == ["."] else folders[0])


def _check_weights(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ArtefactError(f"{path}: no such file, but the card beside it names it.")
    actual = sha256_of(path)
    if actual != expected:
        raise ArtefactError(
            f"{path}: SHA-256 is {actual}, the card beside it says {expected}. The file is damaged or another's: "
            f"remove the folder and take the dictionary again from where it comes."
        )


def _check_shapes(stored: TensorFiles, wanted: SparseAutoencoder, folder: Path) -> None:
    """Raises `ArtefactError` with all tensors that are not as the card says; nothing but headers is read."""
    expected = {name: TensorForm(tensor.dtype, tuple(tensor.shape)) for name, tensor in wanted.state_dict().items()}
    forms = {name: stored.form(name) for name in stored.names()}
    if forms != expected:
        wrong = sorted(name for name in {*forms, *expected} if forms.get(name) != expected.get(name))
        lines = "; ".join(f"{name} is {forms.get(name, 'absent')}, not {expected.get(name, 'there')}" for name in wrong)
        raise ArtefactError(f"{folder}: the weights do not fit the card: {lines}.")
