"""`sae bench`: one command for every measurement; each prints a table and can write its figures as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sae.errors import ConfigError


def _device(arguments: argparse.Namespace) -> Any:
    from sae.foundation.device import device_called

    return device_called(arguments.device, "--device")


def _where(device: Any) -> str:
    """The device and the version of torch, as a heading says them."""
    import torch

    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def _keep(arguments: argparse.Namespace, found: dict[str, Any]) -> int:
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    return 0


def _step(arguments: argparse.Namespace) -> int:
    from sae.benchmarks.step import CPU_SHAPES, GPU_SHAPES, Shape, measure, table

    device = _device(arguments)
    usual = GPU_SHAPES if device.type == "cuda" else CPU_SHAPES
    shapes = [Shape.parse(text) for text in arguments.shape] or list(usual)
    found: dict[str, Any] = {"device": _where(device), "shapes": []}
    print(f"One training step with Adam; {found['device']}. Medians of {arguments.repeats} steps.")
    for shape in shapes:
        found["shapes"].append(measure(shape, device, arguments.repeats))
        print(f"\nwidth {shape.width}, latents {shape.latents}, k {shape.k}, tokens {shape.tokens}\n")
        print(table(found["shapes"][-1]), flush=True)
    return _keep(arguments, found)


def _stream(arguments: argparse.Namespace) -> int:
    from sae.benchmarks.stream import measure, table

    device = _device(arguments)
    found = {"device": _where(device), **measure(device)}
    print(f"From tokens on disk to a trained dictionary; {found['device']}.\n{found['size']}\n\n{table(found)}")
    return _keep(arguments, found)


def _processes(arguments: argparse.Namespace) -> int:
    from sae.benchmarks.processes import measure, table
    from sae.foundation.distributed import processes

    with processes() as group:
        if group.size == 1:
            raise ConfigError(
                "bench processes: start several, such as torchrun --nproc-per-node 2 -m sae.cli bench processes"
            )
        device = _device(arguments)
        found = {"device": _where(device), **measure(group, device)}
        if group.first:
            print(f"{group.size} processes beside one; {found['device']} each.\n\n{table(found)}")
            _keep(arguments, found)
    return 0


def _index(arguments: argparse.Namespace) -> int:
    from sae.benchmarks.index import USUAL, measure, plot, table

    size = USUAL._replace(tokens=tuple(arguments.tokens)) if arguments.tokens else USUAL
    found = measure(size)
    if arguments.plot:
        plot(found, arguments.plot)
    print(f"Codes to a context generation: {size.latents:,} latents, k {size.k}.\n\n{table(found)}")
    return _keep(arguments, found)


def _serve(arguments: argparse.Namespace) -> int:
    from sae.benchmarks.serve import measure, table

    found = measure(arguments.path)
    print(f"A server of {arguments.path}. {table(found)}")
    return _keep(arguments, found)


def add_parser(commands: Any) -> None:
    """Adds `bench` with a command for each measurement."""
    bench = commands.add_parser("bench", help="speed on this machine beside floors and installed peers")
    kinds = bench.add_subparsers(required=True, metavar="command")
    step = kinds.add_parser("step", help="one training step, activations in memory, as ratios in one run")
    cpu = kinds.add_parser("cpu", help="the same on a CPU, whether there is a GPU or not")
    stream = kinds.add_parser("stream", help="tokens to a trained dictionary, beside its parts and sparsify's trainer")
    several = kinds.add_parser(
        "processes", help="several processes beside one (under torchrun): speed and memory of each"
    )
    index = kinds.add_parser("index", help="codes to a feature store, from few tokens to many")
    serve = kinds.add_parser("serve", help="requests per second of a server")
    for parser in (step, stream, several):
        parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    for parser in (step, cpu):
        parser.add_argument(
            "--shape",
            action="append",
            default=[],
            metavar="WIDTH,LATENTS,K,TOKENS",
            help="repeat; default: the usual ones",
        )
        parser.add_argument("--repeats", type=int, default=20, metavar="N", help="steps that are timed (default: 20)")
    index.add_argument(
        "--tokens", type=int, nargs="+", metavar="N", help="numbers of tokens (default: up to a million)"
    )
    index.add_argument("--plot", type=Path, metavar="FILE", help="a picture of cost against tokens")
    serve.add_argument("path", type=Path, help="a dictionary or run folder with a feature store")
    kinds_of_work = (
        (step, _step), (cpu, _step), (stream, _stream), (several, _processes), (index, _index), (serve, _serve),
    )  # fmt: skip
    for parser, work in kinds_of_work:
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
        parser.set_defaults(work=work)
    cpu.set_defaults(device="cpu")
