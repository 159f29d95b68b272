"""`sae bench processes`: several processes beside one of them alone on the same kind of machine."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae.benchmarks.step import CPU_SHAPES, GPU_SHAPES, Shape, saedex
from sae.benchmarks.stream import CPU_SIZE, GPU_SIZE, Size, Stream
from sae.foundation.distributed import ALONE, Processes
from sae.foundation.timing import timed
from sae.training.cuda_graphs import CudaGraphs

REPEATS = 20
WAYS: dict[str, dict[str, str]] = {  # settings of the section train
    "replicas": {"parallel": "replicas"},
    "replicas, gradients in bfloat16": {"parallel": "replicas", "exchange_dtype": "bfloat16"},
    "latents": {"parallel": "latents"},
}


def measure(
    processes: Processes, device: torch.device, shapes: tuple[Shape, ...] | None = None, size: Size | None = None
) -> dict[str, Any]:
    """Seconds and memory of a step and seconds of a stream, for each process alone (all at the same time) and together.

    With replicas every process brings as many activations to an update as one has alone, so batches are `world_size`
    times as large. Latents are spread for the batch that one process has alone. The stream has the same number of
    tokens always.
    """
    gpu = device.type == "cuda"
    usual = tuple(
        s._replace(tokens=s.tokens * multiple) for s in (GPU_SHAPES if gpu else CPU_SHAPES) for multiple in (1, 4)
    )
    steps = [{"shape": shape._asdict(), **_steps(processes, device, shape)} for shape in shapes or usual]
    size = size or (GPU_SIZE._replace(tokens=1 << 25) if gpu else CPU_SIZE)
    streams = [
        {"size": whole._asdict(), "seconds": _streams(processes, device, whole)}
        for whole in (size, size._replace(batch_tokens=4 * size.batch_tokens))
    ]

    return {"processes": processes.world_size, "steps": steps, "streams": streams}


class _Way(NamedTuple):
    name: str
    processes: Processes
    train: dict[str, str]


def _ways(processes: Processes) -> list[_Way]:
    return [_Way("alone", ALONE, {}), *(_Way(name, processes, train) for name, train in WAYS.items())]


def _streams(processes: Processes, device: torch.device, size: Size) -> dict[str, float]:
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as own_folder:
        shared = processes.on_first(lambda: own_folder)
        for name, group, train in _ways(processes):
            if name == "latents":
                size = size._replace(batch_tokens=size.batch_tokens // processes.world_size)
            folder = Path(own_folder if group is ALONE else shared) / name
            warmup_size = size._replace(tokens=min(size.tokens, 1 << 21))
            Stream(warmup_size, device, folder, group, **train).end_to_end()  # compiled by now
            stream = Stream(size, device, folder, group, **train)
            processes.barrier()
            seconds[name] = max(processes.all_gather_objects(stream.end_to_end()))
            del stream
            _free(device)
        processes.barrier()  # before the folder of the first goes

    return seconds


def _steps(processes: Processes, device: torch.device, shape: Shape) -> dict[str, Any]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(processes.rank)
    rows = torch.randn(shape.tokens, shape.width, generator=generator).to(device, dtype)
    figures = {}

    for name, group, train in _ways(processes):
        own_rows = rows[: len(rows) // processes.world_size].clone() if name == "latents" else rows
        processes.barrier()
        timing = timed(saedex(shape, own_rows, dtype, group, **train), device, REPEATS)
        figures[name] = {key: max(processes.all_gather_objects(value)) for key, value in timing._asdict().items()}
        _free(device)

    return figures


def _free(device: torch.device) -> None:
    gc.collect()
    CudaGraphs.release()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def table(measured: dict[str, Any]) -> str:
    """The measurements as Markdown tables."""
    n = measured["processes"]
    lines = [
        "| one step of each | ms alone | | ms together | throughput | memory of each |",
        "|---|---|---|---|---|---|",
    ]

    for step in measured["steps"]:
        alone = step["alone"]
        for way in WAYS:
            figures = step[way]
            gain = (1 if way == "latents" else n) * alone["seconds"] / figures["seconds"]
            share = f"{figures['peak_bytes'] / alone['peak_bytes']:.2f}" if alone["peak_bytes"] else ""
            lines.append(
                f"| {', '.join(map(str, step['shape'].values()))} | {alone['seconds'] * 1e3:.2f} | {way} | "
                f"{figures['seconds'] * 1e3:.2f} | {gain:.2f} | {share} |"
            )

    for stream in measured["streams"]:
        tokens, batch = stream["size"]["tokens"], stream["size"]["batch_tokens"]
        lines += [
            "",
            f"| tokens on disk to a dictionary, {batch} a step and process | tokens/s | against one |",
            "|---|---|---|",
        ]
        for name, seconds in stream["seconds"].items():
            lines.append(f"| {name} | {tokens / seconds:,.0f} | {stream['seconds']['alone'] / seconds:.2f} |")

    return "\n".join(lines)
