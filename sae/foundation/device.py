"""Which device to compute on, what it is, and how much memory this process took at most."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from sae.errors import UnavailableError


def device_called(name: str, setting: str) -> torch.device:
    """The device for auto, cpu or cuda (under torchrun the process's own GPU); raises `UnavailableError`, naming
    `setting`.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(f"{setting} cuda: torch sees no GPU on this machine. Use {setting} cpu.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")

    local = int(os.environ.get("LOCAL_RANK", 0))
    if local >= torch.cuda.device_count():
        raise UnavailableError(
            f"process {local} of this machine needs a GPU of its own, but torch sees {torch.cuda.device_count()}. "
            "Start fewer: torchrun --nproc-per-node."
        )

    if "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(local)

    return torch.device("cuda")


BFLOAT16_PRODUCTS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is Arm's


def has_bfloat16_products() -> bool:
    """Whether this CPU multiplies bfloat16 numbers itself, by what Linux says of it; elsewhere False.

    Without such instructions bfloat16 is slower than float32. Nothing is timed: the same machine has the same answer.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not BFLOAT16_PRODUCTS.isdisjoint(flags.split())


def gains_by_bfloat16(table: Shaped[Tensor, " ..."]) -> bool:
    """Whether the table is in float32 on a CPU that multiplies bfloat16 numbers itself."""
    return table.device.type == "cpu" and table.dtype == torch.float32 and _known_bfloat16_products()


_known_bfloat16_products = cache(has_bfloat16_products)  # asked at every encoding


class PeakMemory:
    """Peak memory of a `with` block: `peak_bytes` beyond what the process had before, without mapped files.

    Sampled every 20 ms, on Linux; elsewhere it is 0.
    """

    def __enter__(self) -> PeakMemory:
        self.peak_bytes, self._before, self._ended = 0, _anonymous_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.peak_bytes = max(self.peak_bytes, _anonymous_bytes() - self._before)


def _anonymous_bytes() -> int:
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return 0


def peak_process_bytes() -> int:
    """The most memory that was resident at once, pages of mapped files included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine_facts(device: torch.device) -> dict[str, str]:
    """Versions of torch and of the GPU's driver, and its clocks now, as far as they can be told."""
    facts = {"torch": str(torch.__version__)}
    program = shutil.which("nvidia-smi") if device.type == "cuda" else None
    if program is None:
        return facts
    names = ("driver_version", "clocks.sm", "clocks.mem")
    query = [program, f"--query-gpu={','.join(names)}", "--format=csv,noheader", f"--id={device.index or 0}"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return facts | dict(zip(names, values, strict=False)) if done.returncode == 0 else facts
