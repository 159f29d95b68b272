"""The published dictionary: a folder with card.json and weights; written whole, loaded from a path or an address."""

from __future__ import annotations

import hashlib
import platform
import re
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from feature_store.dictionary_files import DictionaryCard, JsonFileError, Provenance
from sae.architectures import ArchitectureConfig, SaeConfig, SparseAutoencoder, build
from sae.errors import ArtefactError, UnavailableError
from sae.foundation.distributed import Processes
from sae.foundation.downloads import cache_dir, check_sha256
from sae.foundation.files import write_folder
from sae.foundation.tensor_files import Piece, TensorFiles, save_tensors, tensors_to_write, write_folder_together

WEIGHTS = "weights.safetensors"
SHARD_NAME = re.compile(r"weights-\d{5}-of-\d{5}\.safetensors")
LARGEST_JOINED_BYTES = 8 << 30


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a dictionary is made with."""
    names = ("saedex", "torch", "transformers", "datasets", "numpy", "numba", "duckdb")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def publish(folder: Path, sae: SparseAutoencoder, provenance: Provenance) -> None:
    """Writes a dictionary folder. `sae` takes activations in the language model's own units."""

    def fill(target: Path) -> None:
        sha256 = save_tensors(target / WEIGHTS, dict(sae.state_dict()))
        (target / WEIGHTS).chmod(0o644)  # safetensors makes files private, but a published dictionary is for everybody
        _card(sae, sae.config, provenance, {"weights_sha256": sha256}).write(target)

    folder.parent.mkdir(parents=True, exist_ok=True)
    write_folder(folder, fill)


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
        weights: dict[str, Any] = {"weights_sha256": _joint_sha256(files), "weights_files": files}
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


def _joint_sha256(files: dict[str, str]) -> str:
    return hashlib.sha256("".join(sha256 for _, sha256 in sorted(files.items())).encode()).hexdigest()


def _card(
    sae: SparseAutoencoder, config: ArchitectureConfig, provenance: Provenance, weights: dict[str, Any]
) -> DictionaryCard:
    return DictionaryCard(
        format_version=DictionaryCard.current_version,
        name=config.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        d_model=sae.d_in,
        d_out=sae.d_out,
        sae=config.model_dump(mode="json"),
        selection_dtype=str(sae.selection_dtype).removeprefix("torch."),
        versions=versions(),
        **weights,
        **provenance.model_dump(exclude_unset=True),
    )


def read_card(folder: Path) -> DictionaryCard:
    """card.json of a dictionary folder; raises `ArtefactError` if there is none or its format is not known."""
    try:
        return DictionaryCard.read(folder)
    except JsonFileError as error:
        raise ArtefactError(str(error)) from None


def _weights_files(card: DictionaryCard) -> dict[str, str]:
    """Name and SHA-256 of every file of weights."""
    return card.weights_files or {WEIGHTS: card.weights_sha256}


def load(path_or_url: str | Path) -> SparseAutoencoder:
    """The module of a dictionary folder, or of a server's `/api/v1/dictionaries/{name}` address; hashes are checked."""
    text = str(path_or_url)
    folder = _download(text) if text.startswith(("http://", "https://")) else Path(text)
    card = read_card(folder)
    files = _weights_files(card)
    for name, sha256 in files.items():
        check_sha256(folder / name, sha256)

    try:
        config: Any = TypeAdapter(SaeConfig).validate_python(card.sae)  # pyright: ignore[reportArgumentType]
        sae = build(config, card.d_model, card.d_out, getattr(torch, card.selection_dtype))
        stored = TensorFiles([folder / name for name in files])
        sae.load_state_dict({name: stored.read(name) for name in stored.names()})
    except (ValidationError, SafetensorError, RuntimeError, KeyError) as error:
        raise ArtefactError(f"{folder}: the weights do not fit the card: {error}")

    return sae.eval().requires_grad_(False)


def _download(url: str) -> Path:
    """Folder in the cache with the card and weights behind a server's dictionary address."""
    import httpx

    base = url.rstrip("/")

    try:
        with httpx.Client(timeout=60, follow_redirects=False) as client:
            answer = client.get(f"{base}/download/card.json").raise_for_status()
            card = DictionaryCard.parse(answer.content, url)
            files = _weights_files(card)
            # A card is the server's word: a name with a path in it would be written outside the cache.
            if any(not SHARD_NAME.fullmatch(name) for name in files if name != WEIGHTS):
                raise ArtefactError(f"{url}: its card names files that are no weights: {', '.join(files)}.")

            folder = cache_dir() / "dictionaries" / card.weights_sha256
            if not folder.is_dir():

                def fill(target: Path) -> None:
                    for name, sha256 in files.items():
                        _fetch(client, f"{base}/download/{name}", target / name)
                        check_sha256(target / name, sha256)
                    card.write(target)

                folder.parent.mkdir(exist_ok=True)
                write_folder(folder, fill)
    except (httpx.HTTPError, JsonFileError) as error:
        raise UnavailableError(f"{url}: no dictionary could be downloaded ({error}). Is the server running?")

    return folder


def _fetch(client: Any, url: str, path: Path) -> None:
    with client.stream("GET", url) as part, path.open("wb") as file:
        part.raise_for_status()
        file.writelines(part.iter_bytes(1 << 20))
