"""How much memory and disk this process may still take: of the machine, its control group, its limits, its GPU."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

CGROUPS = Path("/sys/fs/cgroup")


class Room(NamedTuple):
    """Bytes that are left, and what sets the limit."""

    n_bytes: int
    limit: str


def memory_left(device: torch.device) -> Room:
    """The memory that is left on a device. What Linux does not tell, as on other systems, sets no limit."""
    if device.type == "cuda":
        return Room(torch.cuda.mem_get_info(device)[0], "free on the GPU")
    return min(_limits(), default=Room(1 << 62, "no limit"))


def disk_left(folder: Path) -> Room:
    """The free bytes of the disk that a folder, or the nearest one above it that exists, lies on."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return Room(shutil.disk_usage(existing).free, f"free on the disk of {existing}")


def _limits() -> Iterator[Room]:
    machine = _figures(Path("/proc/meminfo"))
    if "MemAvailable" in machine:
        yield Room(machine["MemAvailable"] + machine.get("SwapFree", 0), "free on this machine")

    of_process = _figures(Path("/proc/self/status"))
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        yield Room(max(0, address_space - of_process.get("VmSize", 0)), "left of ulimit -v")
    for limit in _cgroup_limits():
        yield Room(max(0, limit - of_process.get("RssAnon", 0)), "left of the control group's limit")


def _figures(path: Path) -> dict[str, int]:
    """The lines "name: number kB" of a file of /proc, in bytes."""
    try:
        words = [line.replace(":", " ").split() for line in path.read_text("utf-8").splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) * 1024 for line in words if line[2:] == ["kB"]}


def _cgroup_limits() -> Iterator[int]:
    """The memory limits of the control groups, of version 1 or 2, that this process is in, and of those around them."""
    try:
        lines = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, file_name = (CGROUPS, "memory.max") if not controllers else (CGROUPS / "memory", "memory.limit_in_bytes")
        inside = root / name.lstrip("/")
        for folder in (inside, *inside.parents):
            if folder.is_relative_to(root) and (folder / file_name).is_file():
                text = (folder / file_name).read_text("utf-8").strip()
                if text.isdigit():
                    yield int(text)
