"""`sae bench`: one verb per measurement; each prints a table and can write its figures as JSON."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, final

from sae.commands.command import Command


@final
class Bench(Command):
    """Measures saedex on this machine beside floors and installed peers."""

    name = "bench"
    help = "measure speed on this machine beside floors and installed peers"
    order = 70

    def add_arguments(self, parser: ArgumentParser) -> None:
        """One verb per measurement."""
        verbs = parser.add_subparsers(required=True, metavar="command")
        step = verbs.add_parser("step", help="one training step, activations in memory, as ratios in one run")
        cpu = verbs.add_parser("cpu", help="the same on a CPU, whether or not there is a GPU")
        stream = verbs.add_parser(
            "stream", help="tokens to a trained dictionary, beside its parts and sparsify's trainer"
        )
        processes = verbs.add_parser(
            "processes", help="several processes beside one (under torchrun): speed and memory of each"
        )
        index = verbs.add_parser("index", help="codes to a feature store, from few tokens to many")
        serve = verbs.add_parser("serve", help="requests per second of a server")
        models = verbs.add_parser(
            "models",
            help="a tiny random model of every causal-language-model class of transformers, and what holds of it",
        )

        for verb in (step, stream, processes):
            verb.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")

        cpu.set_defaults(device="cpu")
        for verb in (step, cpu):
            _add_step_arguments(verb)

        index.add_argument(
            "--tokens", type=int, nargs="+", metavar="N", help="numbers of tokens (default: up to a million)"
        )
        index.add_argument("--plot", type=Path, metavar="FILE", help="draw cost against tokens into this file")
        serve.add_argument("path", type=Path, help="a dictionary or run folder with a feature store")

        models.add_argument("classes", nargs="*", metavar="CLASS", help="such as LlamaForCausalLM (default: all)")

        works = {
            step: _step, cpu: _step, stream: _stream, processes: _processes, index: _index, serve: _serve,
            models: _models,
        }  # fmt: skip
        for verb, work in works.items():
            verb.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
            verb.set_defaults(work=work)


def _add_step_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="WIDTH,LATENTS,K,TOKENS",
        help="repeat for several; default: the usual ones",
    )
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="steps that are timed (default: 20)")


def _device(arguments: Namespace) -> Any:
    from sae.foundation.device import device_called

    return device_called(arguments.device, "--device")


def _device_name(device: Any) -> str:
    """The device and the version of torch, for a heading."""
    import torch

    is_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name() if is_gpu else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def _write_json(arguments: Namespace, figures: dict[str, Any]) -> int:
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


def _step(arguments: Namespace) -> int:
    from sae.benchmarks.step import CPU_SHAPES, GPU_SHAPES, measure, table
    from sae.foundation.device import machine_facts
    from sae.training.floors import Shape

    device = _device(arguments)
    usual = GPU_SHAPES if device.type == "cuda" else CPU_SHAPES
    shapes = [Shape.parse(text) for text in arguments.shape] or list(usual)
    figures: dict[str, Any] = {"device": _device_name(device), "machine": machine_facts(device), "shapes": []}
    print(f"One training step with Adam; {figures['device']}. Medians of {arguments.repeats} steps.")

    for shape in shapes:
        figures["shapes"].append(measure(shape, device, arguments.repeats))
        print(f"\nwidth {shape.width}, latents {shape.latents}, k {shape.k}, tokens {shape.tokens}\n")
        print(table(figures["shapes"][-1]), flush=True)

    return _write_json(arguments, figures)


def _stream(arguments: Namespace) -> int:
    from sae.benchmarks.stream import measure, table

    device = _device(arguments)
    figures = {"device": _device_name(device), **measure(device)}
    print(f"From tokens on disk to a trained dictionary; {figures['device']}.\n{figures['size']}\n\n{table(figures)}")
    return _write_json(arguments, figures)


def _processes(arguments: Namespace) -> int:
    from sae.benchmarks.processes import measure, table
    from sae.errors import ConfigError
    from sae.foundation.distributed import connected

    with connected() as processes:
        if processes.world_size == 1:
            raise ConfigError(
                "bench processes: start several, such as torchrun --nproc-per-node 2 -m sae.cli bench processes"
            )
        device = _device(arguments)
        figures = {"device": _device_name(device), **measure(processes, device)}
        if processes.is_first:
            print(f"{processes.world_size} processes beside one; {figures['device']} each.\n\n{table(figures)}")
            _write_json(arguments, figures)

    return 0


def _index(arguments: Namespace) -> int:
    from sae.benchmarks.index import USUAL, measure, plot, table

    size = USUAL._replace(tokens=tuple(arguments.tokens)) if arguments.tokens else USUAL
    figures = measure(size)
    if arguments.plot:
        plot(figures, arguments.plot)
    print(f"Codes to a context generation: {size.latents:,} latents, k {size.k}.\n\n{table(figures)}")
    return _write_json(arguments, figures)


def _serve(arguments: Namespace) -> int:
    from sae.benchmarks.serve import measure, table

    figures = measure(arguments.path)
    print(f"A server of {arguments.path}. {table(figures)}")
    return _write_json(arguments, figures)


def _models(arguments: Namespace) -> int:
    from sae.benchmarks.models import figures, measure, table
    from sae.benchmarks.tiny_models import class_names
    from sae.errors import ConfigError
    from sae.foundation.screen import Screen

    classes = class_names()
    unknown = sorted(set(arguments.classes) - set(classes))
    if unknown:
        raise ConfigError(
            f"bench models: transformers reads no causal language model by the class {', '.join(unknown)}. "
            f"It has {len(classes)}, such as {', '.join(classes[:3])}; leave CLASS out for all."
        )

    with Screen().progress("models", len(arguments.classes or classes), "classes") as progress:
        every = measure(arguments.classes or classes, progress)

    counts = figures(every)
    print(
        f"Tiny random models of {counts['classes']} classes of transformers {counts['transformers']}: {counts['built']} can "
        f"be built, {counts['causal']} of these read from left to right alone, and {counts['passed']} of these pass.\n\n{table(every)}"
    )
    return _write_json(arguments, counts)
