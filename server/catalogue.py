"""The dictionaries that a server shows: found on disk, opened read-only, reopened when a new generation is published."""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from feature_store.dictionary_files import DictionaryCard, JsonFile, JsonFileError, LabelSummary, Metrics
from feature_store.store import Store, StoreError
from feature_store.writer import read_pointer

DOWNLOADS = {
    "card.json": "application/json",
    "weights.safetensors": "application/octet-stream",
    "metrics.json": "application/json",
    "labels.json": "application/json",
    "training.jsonl": "application/x-ndjson",
    "features.parquet": "application/vnd.apache.parquet",
    "contexts.parquet": "application/vnd.apache.parquet",
    "concepts.parquet": "application/vnd.apache.parquet",
    "concepts.json": "application/json",
    "token_latents.parquet": "application/vnd.apache.parquet",
    "curves.png": "image/png",
    "density.png": "image/png",
    "zf.png": "image/png",
    "zf.csv": "text/csv",
    "head_shares.safetensors": "application/octet-stream",
    "report.md": "text/markdown",
}
BUNDLE = "dictionary.zip"
F = TypeVar("F", bound=JsonFile)


class CatalogueError(Exception):
    """A path that holds no dictionary that can be served."""


@dataclass(frozen=True)
class Download:
    """One file that may be downloaded."""

    name: str
    path: Path
    media_type: str
    size_bytes: int
    sha256: str


class Entry:
    """One dictionary: its card, its metrics and its store."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.card = DictionaryCard.read(folder)
        self.metrics = _read_if_there(Metrics, folder) or Metrics()
        self.labels = _read_if_there(LabelSummary, folder)
        self.id = f"{self.card.run}.{self.card.name}"
        self._lock = threading.Lock()
        self._pointer = read_pointer(folder / "store")
        self._store = Store(folder / "store")
        self._hashes: dict[tuple[Path, int, int], str] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="saedex-")

    @property
    def store(self) -> Store:
        """The store of the newest published generation; requests that hold the former one finish on it."""
        with self._lock:
            pointer = read_pointer(self.folder / "store")
            if pointer and pointer != self._pointer:
                self._store, self._pointer = Store(self.folder / "store"), pointer
            return self._store

    def close(self) -> None:
        """Closes the store and removes the bundles."""
        self._store.close()
        self._scratch.cleanup()

    def training_curve(self) -> list[dict[str, Any]]:
        """Lines of training.jsonl."""
        path = self.folder / "training.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def downloads(self) -> list[Download]:
        """Every file on offer, with size and SHA-256; the whole dictionary last."""
        files = [(name, self.folder / name, kind) for name, kind in DOWNLOADS.items()]
        files += [
            (g["file"], self.folder / "store" / g["file"], "application/octet-stream") for g in self._pointer.values()
        ]
        files += [(n, self.folder / n, "application/octet-stream") for n in self.card.weights_files or {}]
        present = [f for f in files if f[1].is_file()]
        bundle = self._bundle([f[1] for f in present])
        return [self._download(*f) for f in [*present, (BUNDLE, bundle, "application/zip")]]

    def download(self, name: str) -> Download | None:
        """One file on offer by its exact name; no path can be expressed."""
        return next((d for d in self.downloads() if d.name == name), None)

    def _download(self, name: str, path: Path, media_type: str) -> Download:
        status = path.stat()
        key = (path, status.st_mtime_ns, status.st_size)
        if key not in self._hashes:
            with path.open("rb") as file:
                self._hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return Download(name, path, media_type, status.st_size, sha256=self._hashes[key])

    def _bundle(self, files: list[Path]) -> Path:
        """A zip of all files, laid out as the dictionary folder, made once per state of the folder."""
        state = hashlib.sha256(repr([(str(f), f.stat().st_mtime_ns) for f in files]).encode()).hexdigest()[:16]
        path = Path(self._scratch.name) / f"{state}.zip"

        with self._lock:
            if not path.exists():
                temporary = path.with_suffix(".writing")
                with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
                    for file in [*files, self.folder / "store" / "current.json"]:
                        archive.write(file, f"{self.card.name}/{file.relative_to(self.folder)}")
                temporary.replace(path)

        return path


def _read_if_there(kind: type[F], folder: Path) -> F | None:
    return kind.read(folder) if (folder / kind.file_name).exists() else None


def dictionary_folders(path: Path) -> list[Path]:
    """Dictionary folders at a path: itself, or the finished ones of a run folder, or of a folder of runs."""
    if (path / "card.json").is_file():
        return [path]
    for pattern in ("dictionaries/*/card.json", "*/dictionaries/*/card.json"):
        folders = sorted(p.parent for p in path.glob(pattern) if not p.parent.name.startswith("."))
        if finished := [folder for folder in folders if "contexts" in read_pointer(folder / "store")]:
            return finished
    raise CatalogueError(f"{path}: no finished dictionary there. Give a run folder such as runs/quickstart.")


def open_catalogue(paths: list[Path]) -> dict[str, Entry]:
    """Dictionaries under the paths, by id; raises `CatalogueError` with the reason if one cannot be opened."""
    entries: dict[str, Entry] = {}
    for folder in [f for path in paths for f in dictionary_folders(path)]:
        try:
            entry = Entry(folder)
        except (StoreError, JsonFileError, ValueError, KeyError, OSError) as error:
            raise CatalogueError(f"{folder}: {error}") from None
        if entry.id in entries:
            raise CatalogueError(f"{folder}: another dictionary has the id {entry.id} too. Serve them separately.")
        entries[entry.id] = entry

    return entries
