"""The published dictionary: a folder with card.json and weights; written whole, loaded from a path or an address."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from sae.architectures import ArchitectureConfig, SaeConfig, SparseAutoencoder, build
from sae.errors import ArtefactError, UnavailableError
from sae.foundation.distributed import Group
from sae.foundation.downloads import cache_dir, check_sha256
from sae.foundation.files import write_folder, write_json
from sae.training.checkpoint import Piece, Saved, once, save_pieces, write_together

CARD_VERSION = 1
WEIGHTS = "weights.safetensors"
SHARD = re.compile(r"weights-\d{5}-of-\d{5}\.safetensors")
JOINED_BYTES = 8 << 30


def versions() -> dict[str, str]:
    """Versions of what produced a dictionary."""
    names = ("saedex", "torch", "transformers", "datasets", "numpy", "numba", "duckdb")
    found = {name: metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


def publish(folder: Path, sae: SparseAutoencoder, facts: dict[str, Any]) -> None:
    """Writes a dictionary that takes activations in the language model's own units; `facts` go into its card."""

    def fill(target: Path) -> None:
        sha256 = save_pieces(target / WEIGHTS, dict(sae.state_dict()))
        (target / WEIGHTS).chmod(0o644)  # the library makes it private, a published dictionary is not
        _write_card(target, sae, sae.config, {"weights_sha256": sha256, **facts})

    folder.parent.mkdir(parents=True, exist_ok=True)
    write_folder(folder, fill)


def publish_shards(
    folder: Path, sae: SparseAutoencoder, config: ArchitectureConfig, tensors: dict[str, Tensor | Piece],
    facts: dict[str, Any], group: Group,
) -> None:  # fmt: skip
    """As `publish`, of a dictionary whose latents are spread over processes: each writes a file of its own.

    Up to `JOINED_BYTES` they are put together into one; larger dictionaries stay in shards, whose hash is that of their
    hashes.
    """
    name = f"weights-{group.rank:05d}-of-{group.size:05d}.safetensors"  # see SHARD

    def fill(target: Path) -> None:
        files = dict(group.values((name, save_pieces(target / name, once(tensors, group)))))
        if not group.first:
            return
        shards = [target / file for file in files]
        about: dict[str, Any] = {"weights_sha256": _joint_sha256(files), "weights_files": files}
        if sum(path.stat().st_size for path in shards) <= JOINED_BYTES:
            saved = Saved(shards, {})
            about = {"weights_sha256": save_pieces(target / WEIGHTS, {n: saved.read(n) for n in saved.names()})}
            for path in shards:
                path.unlink()
        for path in target.glob("weights*"):
            path.chmod(0o644)
        _write_card(target, sae, config, {**about, **facts})

    write_together(folder, fill, group)


def _joint_sha256(files: dict[str, str]) -> str:
    return hashlib.sha256("".join(sha256 for _, sha256 in sorted(files.items())).encode()).hexdigest()


def _write_card(target: Path, sae: SparseAutoencoder, config: ArchitectureConfig, facts: dict[str, Any]) -> None:
    card = {
        "card_version": CARD_VERSION,
        "name": config.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "d_model": sae.d_in,
        "d_out": sae.d_out,
        "sae": config.model_dump(mode="json"),
        "selection_dtype": str(sae.selection_dtype).removeprefix("torch."),
        "versions": versions(),
        **facts,
    }
    write_json(target / "card.json", card)


def read_card(folder: Path) -> dict[str, Any]:
    """card.json of a dictionary folder; raises `ArtefactError` where there is none or it is newer than we know."""
    path = folder / "card.json"
    try:
        card = json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtefactError(f"{folder}: no card.json there. Give a dictionary folder such as runs/x/dictionaries/y.")
    except ValueError as error:
        raise ArtefactError(f"{path}: not valid JSON ({error}).")
    if card.get("card_version") != CARD_VERSION:
        raise ArtefactError(f"{path}: card version {card.get('card_version')}, this saedex reads {CARD_VERSION}.")
    return card


def load(path_or_url: str | Path) -> SparseAutoencoder:
    """The module of a dictionary folder, or of a server's `/api/v1/dictionaries/{name}` address; hash checked."""
    text = str(path_or_url)
    folder = _download(text) if text.startswith(("http://", "https://")) else Path(text)
    card = read_card(folder)
    files: dict[str, str] = card.get("weights_files", {WEIGHTS: card["weights_sha256"]})
    for name, sha256 in files.items():
        check_sha256(folder / name, sha256)
    try:
        config: Any = TypeAdapter(SaeConfig).validate_python(card["sae"])  # pyright: ignore[reportArgumentType]
        sae = build(config, card["d_model"], card.get("d_out"), getattr(torch, card["selection_dtype"]))
        saved = Saved([folder / name for name in files], {})
        sae.load_state_dict({name: saved.read(name) for name in saved.names()})
    except (ValidationError, SafetensorError, RuntimeError, KeyError) as error:
        raise ArtefactError(f"{folder}: the weights do not fit the card: {error}")
    return sae.eval().requires_grad_(False)


def _download(url: str) -> Path:
    """Folder in the cache with the card and weights behind a server's dictionary address."""
    import httpx

    base = url.rstrip("/")
    try:
        with httpx.Client(timeout=60, follow_redirects=False) as client:
            card = client.get(f"{base}/download/card.json").raise_for_status()
            expected = card.json()["weights_sha256"]
            files: dict[str, str] = card.json().get("weights_files", {WEIGHTS: expected})
            if any(not SHARD.fullmatch(name) for name in files if name != WEIGHTS):
                raise ArtefactError(f"{url}: its card names files that are no weights: {', '.join(files)}.")
            folder = cache_dir() / "dictionaries" / expected
            if not folder.is_dir():

                def fill(target: Path) -> None:
                    for name, sha256 in files.items():
                        with (
                            client.stream("GET", f"{base}/download/{name}") as part,
                            (target / name).open("wb") as file,
                        ):
                            part.raise_for_status()
                            file.writelines(part.iter_bytes(1 << 20))
                        check_sha256(target / name, sha256)
                    (target / "card.json").write_bytes(card.content)

                folder.parent.mkdir(exist_ok=True)
                write_folder(folder, fill)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise UnavailableError(f"{url}: no dictionary could be downloaded ({error}). Is the server running?")
    return folder
