"""Which device to compute on, and the most memory that this process took."""

from __future__ import annotations

import os
import resource
import sys

import torch

from sae.errors import UnavailableError


def device_called(asked: str, setting: str) -> torch.device:
    """The device for auto, cpu or cuda (under torchrun the process's own GPU); raises `UnavailableError`, naming `setting`."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(f"{setting} cuda was asked, torch sees no GPU. Use {setting} cpu.")
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", 0))
    if local >= torch.cuda.device_count():
        raise UnavailableError(
            f"process {local} of this machine wants a GPU of its own, torch sees {torch.cuda.device_count()}. "
            "Start fewer: torchrun --nproc-per-node."
        )
    if "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(local)
    return torch.device("cuda")


def peak_process_bytes() -> int:
    """The most memory that was resident at once, pages of mapped files included."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
