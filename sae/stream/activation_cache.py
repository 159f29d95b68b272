"""Harvested activations on disk: one file per range of contexts, named by their content and checked by hash.

A run's own cache lasts until the run ends. A shared cache lies beside the other downloads, in a folder named by
everything that the numbers depend on, until somebody removes it; the first run that wants a range harvests it while the
others wait.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
import xxhash
from filelock import FileLock, Timeout
from jaxtyping import Float, Int, Integer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from feature_store.errors import JsonFileError
from sae.errors import ConfigError
from sae.foundation.downloads import cache_dir
from sae.foundation.files import read_json, write_json, writing
from sae.foundation.screen import Progress
from sae.model.hookpoints import Channel
from sae.stream.harvest import Harvester
from sae.stream.packed_rows import PackedRows

FORMAT = 1
FACTS = "facts.json"
Rows = tuple[
    dict[Channel, Float[Tensor, "rows _width"]], Int[Tensor, " rows"]
]  # [rows, width] of every channel; the rows' places in the range [rows]


@dataclass
class Traffic:
    """Positions read from a cache, positions written to it, and the seconds that both took."""

    read: int = 0
    written: int = 0
    seconds: float = 0.0


class ActivationCache:
    """Rows of ranges of contexts in bfloat16, from their files or harvested and stored; the same bits either way."""

    def __init__(self, folder: Path, harvester: Harvester, *, is_int8: bool = False, progress: Progress | None = None):
        self.folder, self.harvester, self.is_int8 = folder, harvester, is_int8
        self.progress = progress or Progress()
        self.traffic = Traffic()
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def shared(cls, harvester: Harvester, ctx_len: int, *, is_int8: bool, progress: Progress) -> ActivationCache:
        """The cache of all runs with this model, these channels and these filters on this kind of device."""
        facts = _facts(harvester, ctx_len, is_int8)
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        cache = cls(_home() / key, harvester, is_int8=is_int8, progress=progress)
        with FileLock(cache.folder / "facts.lock"):  # processes of a run come here at the same moment
            if not (cache.folder / FACTS).exists():
                write_json(cache.folder / FACTS, facts)
        return cache

    def path(
        self, ids: Integer[np.ndarray, "contexts ctx_len"], documents: Integer[np.ndarray, "contexts ctx_len"]
    ) -> Path:
        """The file of a range of contexts, named by their content."""
        digest = xxhash.xxh3_128(f"{ids.shape} {ids.dtype} ".encode())
        digest.update(np.ascontiguousarray(ids).data)
        digest.update(np.ascontiguousarray(documents).data)
        return self.folder / f"contexts-{digest.hexdigest()}.safetensors"

    def rows(
        self,
        ids: Integer[np.ndarray, "contexts ctx_len"],
        documents: Integer[np.ndarray, "contexts ctx_len"],
        harvest: Callable[[], Rows],
    ) -> Rows:
        """The rows of these contexts; `harvest` is called if they are not stored."""
        path = self.path(ids, documents)
        lock = FileLock(path.with_suffix(".lock"))

        with self._timed(lambda: self._acquired(lock)):
            stored = self._timed(lambda: self._read(path))
            if stored is not None:
                self.traffic.read += ids.size
                return stored
            x, positions = harvest()
            self.traffic.written += ids.size
            return self._timed(lambda: self._write(path, x, positions))

    def _acquired(self, lock: FileLock) -> Any:
        try:
            return lock.acquire(timeout=2)
        except Timeout:
            self.progress.say(f"waiting for the run that harvests the same activations ({self.folder})")
            return lock.acquire()

    def _timed(self, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        self.traffic.seconds += time.perf_counter() - start
        return result

    def _read(self, path: Path) -> Rows | None:
        if not path.exists():
            return None

        tensors: dict[str, Tensor] = {}
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
                sound = (file.metadata() or {}).get("xxh3_128") == _digest(tensors)
        except SafetensorError:
            sound = False

        if not sound:
            self.progress.say(f"{path}: damaged; its activations are harvested again")
            return None

        path.touch()  # so that the longest unused can be found
        sent = {name: t.to(self.harvester.lm.device) for name, t in tensors.items() if name != "positions"}

        return {channel: _rows(sent, str(channel)) for channel in self.harvester.channels}, tensors["positions"]

    def _write(self, path: Path, x: dict[Channel, Tensor], positions: Tensor) -> Rows:
        tensors, stored_rows = {"positions": positions}, {}
        for channel, rows in x.items():
            packed = PackedRows.of(rows) if self._packs(channel) else None
            parts = (
                {str(channel): rows} if packed is None else {f"{channel}/{n}": t for n, t in packed._asdict().items()}
            )
            tensors |= {name: part.contiguous().cpu() for name, part in parts.items()}
            stored_rows[channel] = rows if packed is None else packed.rows()

        with writing(path) as temporary:
            save_file(tensors, temporary, metadata={"xxh3_128": _digest(tensors)})

        return stored_rows, positions

    def _bytes_per_position(self) -> int:
        total = 8
        for channel in self.harvester.channels:
            width = self.harvester.width(channel.hook)
            total += width + 4 if self._packs(channel) else 2 * width
        return total

    def _packs(self, channel: Channel) -> bool:
        return self.is_int8 and channel.kind == "activation"

    def missing_bytes(self, paths: Iterable[tuple[Path, int]]) -> int:
        """Bytes of those files of `paths` (path, positions) that are not stored yet."""
        return sum(positions for path, positions in paths if not path.exists()) * self._bytes_per_position()

    def check_disk_space(self, missing: int) -> None:
        """Says how many bytes will be stored; raises `ConfigError` if the disk has less."""
        free = shutil.disk_usage(self.folder).free
        if missing > free:
            raise ConfigError(
                f"harvest.cache: {missing:,} bytes of activations would be kept in {self.folder}, where {free:,} bytes "
                f"are free. Set harvest.cache: false, or cache_dtype: int8; SAEDEX_CACHE moves the shared cache."
            )
        if missing > 1e8:
            self.progress.say(f"activations: up to {missing / 1e9:.1f} GB will be kept in {self.folder}")


class SharedCache(NamedTuple):
    """A cache that runs share: where it is, what it takes, when it was last used, what its numbers depend on.

    `facts` is empty if no run got as far as writing them, or if they are damaged.
    """

    folder: Path
    n_bytes: int
    last_used: float
    facts: dict[str, Any]


def shared_caches() -> list[SharedCache]:
    """Every shared cache, the longest unused first."""
    caches = []
    for folder in filter(Path.is_dir, _home().glob("*")):
        files = [path.stat() for path in folder.glob("contexts-*.safetensors")]
        last_used = max((file.st_mtime for file in files), default=folder.stat().st_mtime)
        facts: dict[str, Any] = {}
        with suppress(JsonFileError):  # a cache with damaged facts can still be removed
            facts = read_json(folder / FACTS)
        caches.append(SharedCache(folder, sum(file.st_size for file in files), last_used, facts))
    return sorted(caches, key=lambda cache: cache.last_used)


def remove(name: str) -> int:
    """Removes a shared cache by its name, or `all`; returns the bytes that its activations took.

    Raises `ConfigError` if there is none of that name, or a run is using it.
    """
    caches = {cache.folder.name: cache for cache in shared_caches()}
    if name != "all" and name not in caches:
        raise ConfigError(f"no shared cache {name!r}; there are: {', '.join(caches) or 'none'}.")

    caches_to_remove = list(caches.values()) if name == "all" else [caches[name]]
    for cache in caches_to_remove:
        for path in cache.folder.glob("*.lock"):
            try:
                FileLock(path).acquire(timeout=0).lock.release()
            except Timeout:
                raise ConfigError(
                    f"{cache.folder}: a run is using these activations. Wait for it, or stop it."
                ) from None
        shutil.rmtree(cache.folder)

    return sum(cache.n_bytes for cache in caches_to_remove)


def _home() -> Path:
    return cache_dir() / "activations"


def _rows(tensors: dict[str, Tensor], name: str) -> Tensor:
    if name in tensors:
        return tensors[name]
    return PackedRows(*(tensors[f"{name}/{part}"] for part in PackedRows._fields)).rows()


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _facts(harvester: Harvester, ctx_len: int, is_int8: bool) -> dict[str, Any]:
    """Everything that the numbers depend on, except the contexts."""
    lm, config = harvester.lm, harvester.config
    gpu = lm.device.type == "cuda"
    return {
        "format": FORMAT,
        "model": lm.name,
        "model_sha256": lm.sha256,
        "dtype": str(next(lm.model.parameters()).dtype),
        "channels": [str(channel) for channel in harvester.channels],
        "stored": "int8" if is_int8 else "bfloat16",
        "ctx_len": ctx_len,
        "contexts_per_pass": config.contexts_per_pass(ctx_len, lm.device),
        "compiled": harvester.compiled is not None,
        "packing": harvester.packing,
        "drop_positions": config.drop_positions,
        "special_ids_dropped": lm.special_ids if config.drop_special else [],
        "device": torch.cuda.get_device_name(lm.device) if gpu else "cpu",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
