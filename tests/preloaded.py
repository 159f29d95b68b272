"""`sae ...` in processes of their own that begin with everything imported: forked from a server that imported it once.

A process that a test starts afresh spends four seconds on imports before it does anything.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from with_plugins import Further

OURS = ("sae", "server", "feature_store")
_context = multiprocessing.get_context("forkserver")


@functools.cache
def _start_server() -> None:
    """Starts the server with the path on which it finds its modules; it is not given this process's own."""
    _context.set_forkserver_preload([f"{__name__}_modules"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]))
        forkserver.ensure_running()


@dataclass(frozen=True)
class Stop:
    """A signal that a process sends itself and its group as soon as `reached()`, which is asked at every audited event.

    A test that watched from outside would miss the moment on a machine that is faster or busier.
    """

    reached: Callable[[], bool]
    number: int = signal.SIGKILL

    def listen(self) -> None:
        """Asks from now on."""
        is_asking = False

        def hook(*_: object) -> None:
            nonlocal is_asking
            if not is_asking:
                is_asking = True
                is_asking = self.reached()
                if is_asking:
                    os.killpg(0, self.number)

        sys.addaudithook(hook)


def exists(place: Path, pattern: str, n: int = 1) -> bool:
    """Whether a folder holds n paths that match the pattern."""
    return len(list(place.glob(pattern))) >= n


def is_larger(path: Path, n_bytes: int) -> bool:
    """Whether the file is there and longer than that."""
    return path.exists() and path.stat().st_size > n_bytes


def _sae(
    arguments: list[str],
    environment: dict[str, str],
    files: tuple[str, str],
    plugins: Path | None = None,
    stop: Stop | None = None,
) -> None:
    """What the child does; it never returns. With a folder of plug-ins it imports our own packages anew."""
    code = 99
    try:
        os.setsid()
        for handle, path in enumerate((os.devnull, *files)):
            os.dup2(os.open(path, os.O_RDWR), handle)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.environ.clear()
        os.environ.update(environment)
        anew = (OURS if plugins else ()) + (("huggingface_hub", *OURS) if "HF_ENDPOINT" in environment else ())
        for name in [name for name in sys.modules if name.partition(".")[0] in anew]:
            del sys.modules[name]
        if plugins is not None:
            sys.meta_path.insert(0, Further(plugins))
        if stop is not None:
            stop.listen()

        from sae.cli import main

        code = main(arguments)
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


class SaeProcess:
    """A running `sae ...`: its process id, its exit code once it has one, and what it has printed."""

    def __init__(
        self,
        *arguments: Any,
        env: dict[str, str] | None = None,
        plugins: Path | None = None,
        stop: Stop | None = None,
    ):
        self.arguments = [*map(str, arguments)]
        self._files = [tempfile.NamedTemporaryFile("r", encoding="utf-8", suffix=name) for name in (".out", ".err")]  # noqa: SIM115
        names = self._files[0].name, self._files[1].name
        _start_server()
        inherited = (self.arguments, dict(env or os.environ), names, plugins, stop)
        self._process = _context.Process(target=_sae, args=inherited)
        self._process.start()

    @property
    def pid(self) -> int:
        """Process id, also of its group."""
        return self._process.pid or 0

    @property
    def printed(self) -> tuple[str, str]:
        """Standard output and standard error so far."""
        out, err = (Path(file.name).read_text(encoding="utf-8") for file in self._files)
        return out, err

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        """Exit code; after `timeout` seconds the process is killed."""
        self._process.join(timeout)
        if self.poll() is None:
            self.signal(signal.SIGKILL)
            self._process.join()
            raise subprocess.TimeoutExpired(self.arguments, timeout, *self.printed)
        return self.poll() or 0

    def signal(self, number: int) -> None:
        """Sends a signal to the process and all that it started."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # it has ended, or has not begun a group of its own yet
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def run_cli(
    *arguments: Any, env: dict[str, str] | None = None, plugins: Path | None = None, stop: Stop | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `sae ...` to its end in a process of its own, with further plug-ins if a folder of them is given."""
    process = SaeProcess(*arguments, env=env, plugins=plugins, stop=stop)
    code = process.wait()
    return subprocess.CompletedProcess(process.arguments, code, *process.printed)


def run_ranks(n: int, port: int, *arguments: Any) -> list[subprocess.CompletedProcess[str]]:
    """Runs `sae ...` in n processes that torch takes for the ranks of one run, as torchrun starts them."""
    shared = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        SaeProcess(*arguments, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(n)
    ]
    return [subprocess.CompletedProcess(rank.arguments, rank.wait(), *rank.printed) for rank in ranks]
