"""Counts what a process does to the disk, and makes one of these operations fail, or be the last one."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMELESS = {"fsync", "posix_fallocate", "save_file", "write_table", "duckdb"}  # their real errors name no file either
KINDS = ("ENOSPC", "EIO", "kill before", "kill after")


@dataclass
class Fault:
    """Something that happens at operation `number`, counted from 1; 0 lets all of them pass."""

    kind: str
    number: int


class Operations:
    """The operations of this process on files under `root`, from the moment of `install`.

    Counted are: opening for writing, rename, remove, mkdir, rmdir, fsync, setting bytes aside, and what safetensors,
    pyarrow and DuckDB write by themselves.
    """

    def __init__(self, root: Path, fault: Fault, log: Path | None = None):
        self.root, self.fault, self.n = str(root.resolve()), fault, 0
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log else None

    def install(self) -> None:
        """Puts a count around everything that writes."""
        opened, system_open = builtins.open, os.open
        flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT

        def open_counted(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            if not set(mode) & set("wax+"):
                return opened(file, mode, *args, **more)
            return self.perform(f"open {mode}", file, lambda: opened(file, mode, *args, **more))

        def system_open_counted(path: Any, how: int, *args: Any, **more: Any) -> int:
            if not how & flags:
                return system_open(path, how, *args, **more)
            return self.perform("open", path, lambda: system_open(path, how, *args, **more))

        builtins.open = io.open = open_counted  # pyright: ignore
        os.open = system_open_counted  # pyright: ignore
        for name in ("rename", "replace", "unlink", "remove", "mkdir", "rmdir"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        for name in ("fsync", "posix_fallocate"):
            setattr(
                os, name, self._counted(name, getattr(os, name), path_of=lambda handle, *_: f"/proc/self/fd/{handle}")
            )
        self._install_libraries()

    def _install_libraries(self) -> None:
        import duckdb
        import pyarrow.parquet
        import safetensors.torch
        from safetensors import SafetensorError

        import feature_store.writer

        save = self._counted("save_file", safetensors.torch.save_file, path_of=lambda _, path, *__: path)

        def save_file(*args: Any, **more: Any) -> None:
            try:
                save(*args, **more)
            except OSError as error:
                raise SafetensorError(f"I/O error: {error.strerror} (os error {error.errno})") from error

        for module in list(sys.modules.values()):
            if getattr(module, "save_file", None) is safetensors.torch.save_file:
                module.save_file = save_file
        pyarrow.parquet.write_table = self._counted(
            "write_table", pyarrow.parquet.write_table, path_of=lambda _, path, *__: path
        )

        writer, operations = feature_store.writer.GenerationWriter, self
        writing = writer._writing

        @contextlib.contextmanager
        def counted(generation: Any) -> Iterator[None]:
            with writing(generation):
                try:
                    operations.perform("duckdb", generation.path, lambda: None)
                except OSError as error:
                    text = f"IO Error: Could not write file {generation.path}: {error.strerror}"
                    raise duckdb.IOException(text) from error
                yield

        writer._writing = counted

    def _counted(
        self, name: str, function: Callable[..., Any], path_of: Callable[..., Any] = lambda path, *_: path
    ) -> Callable[..., Any]:
        def counted(*args: Any, **more: Any) -> Any:
            return self.perform(name, path_of(*args), lambda: function(*args, **more))

        return counted

    def perform(self, name: str, path: Any, work: Callable[[], Any]) -> Any:
        """Does `work` if it is none of ours; otherwise counts it, and lets the fault happen if it is its turn."""
        if isinstance(path, int) or not os.path.realpath(os.fspath(path)).startswith(self.root):
            return work()
        self.n += 1
        if self._log is not None:
            os.write(
                self._log, f"{self.n} {name} {os.path.realpath(os.fspath(path)).removeprefix(self.root)}\n".encode()
            )
        if self.n != self.fault.number:
            return work()

        if self.fault.kind in ("ENOSPC", "EIO"):
            number = getattr(errno, self.fault.kind)
            says_where = () if name in NAMELESS else (os.fspath(path),)
            raise OSError(number, os.strerror(number), *says_where)
        if self.fault.kind == "kill after":
            with contextlib.suppress(OSError):
                work()
        os.kill(os.getpid(), signal.SIGKILL)
        return None
