"""`sae bench step`: one whole training step with Adam, activations in memory, beside peers and floors."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.architectures.topk import TopKConfig
from sae.foundation.distributed import ALONE, Processes
from sae.foundation.timing import Timed, of_peer, timed, together
from sae.model.hookpoints import Channel, HookPoint
from sae.stream.activations import ActivationStatistics
from sae.training.cuda_graphs import CudaGraphs
from sae.training.floors import Shape, Step, floors
from sae.training.optimiser import TrainConfig
from sae.training.trainer import SaeTrainer

HOOK = HookPoint("resid_post", 0)


GPU_SHAPES = Shape(768, 24_576, 32, 8192), Shape(576, 36_864, 32, 8192), Shape(2304, 65_536, 64, 4096)
CPU_SHAPES = (Shape(256, 4096, 32, 2048),)


def saedex(
    shape: Shape, rows: Float[Tensor, "tokens width"], dtype: torch.dtype, processes: Processes = ALONE, **train: Any
) -> Step:
    """Our step: selection in `dtype`; `rows` are those of this process; `train` are settings of the config's section."""
    config = TopKConfig(name="x", hook=HOOK, d_sae=shape.latents, k=shape.k)
    centre = rows.float().mean(0)
    norm = float(rows.float().norm(dim=1).median())
    statistics = ActivationStatistics(
        median_norm=norm,
        scale=shape.width**0.5 / norm,
        centre=centre.tolist(),
        mean=centre.tolist(),
        variance=float((rows.float() - centre).square().sum(1).mean()),
        max_norm=None,
    )
    settings = TrainConfig(**train)
    trainer = SaeTrainer(
        config, {HOOK: statistics}, seed=0, dtype=dtype, device=rows.device, processes=processes, train=settings
    )
    counts = [len(rows)] * processes.world_size

    def step() -> None:
        if settings.parallel == "replicas":
            trainer.step({Channel(HOOK): rows}, 1e-3, counts)
        else:
            trainer.step({Channel(HOOK): processes.all_gather_rows(rows, counts)}, 1e-3)

    return step


def sparsify(shape: Shape, rows: Float[Tensor, "tokens width"]) -> Step:
    """eai-sparsify's step with its own kernels and fused Adam."""
    from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

    coder: Any = SparseCoder(shape.width, SparseCoderConfig(num_latents=shape.latents, k=shape.k), dtype=torch.float32)
    coder.to(rows.device)
    optimiser = torch.optim.Adam(coder.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(rows.float())
        optimiser.zero_grad()
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()

    return step


def dictionary_learning(shape: Shape, rows: Float[Tensor, "tokens width"]) -> Step:
    """dictionary-learning's step, in bfloat16 autocast on a GPU."""
    from dictionary_learning.trainers.top_k import TopKTrainer  # pyright: ignore[reportMissingImports]

    trainer: Any = TopKTrainer(
        steps=100_000, activation_dim=shape.width, dict_size=shape.latents, k=shape.k, layer=0, lm_name="x", lr=1e-3,
        device=str(rows.device),
    )  # fmt: skip
    count = iter(range(1, 1 << 30))

    def step() -> None:
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=rows.device.type == "cuda"):
            trainer.update(next(count), rows.float())

    return step


def saelens(shape: Shape, rows: Float[Tensor, "tokens width"]) -> Step:
    """sae-lens' step, in bfloat16 autocast on a GPU."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig  # pyright: ignore[reportMissingImports]
    from sae_lens.saes.sae import TrainStepInput  # pyright: ignore[reportMissingImports]

    device = rows.device
    sae: Any = TopKTrainingSAE(
        TopKTrainingSAEConfig(d_in=shape.width, d_sae=shape.latents, k=shape.k, device=str(device))
    )
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-3, fused=True)
    dead = torch.zeros(shape.latents, dtype=torch.bool, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            out = sae.training_forward_pass(TrainStepInput(rows.float(), {}, dead, 1, is_logging_step=False))
        optimiser.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()

    return step


ROUNDS = 3
PEERS = {"sparsify": sparsify, "dictionary_learning": dictionary_learning, "saelens": saelens}


def measure(shape: Shape, device: torch.device, repeats: int) -> dict[str, Any]:
    """Seconds and peak memory of every step and floor that runs here; the reason for those that do not.

    Steps take turns, three rounds of a third of the repeats each, so that a slow minute meets all of them.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    # Not the seed of the dictionary: its decoder rows would be these rows.
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(shape.tokens, shape.width, generator=generator).to(device, dtype)
    makers: dict[str, Callable[[], Step]] = {"saedex": lambda: saedex(shape, rows, dtype)}

    for moments in ("bfloat16", "int8") if device.type == "cuda" else ():  # on a CPU they save no time
        makers[f"saedex, moments in {moments}"] = lambda m=moments: saedex(shape, rows, dtype, moments=m)

    makers |= {name: lambda make=make: make(shape, rows) for name, make in PEERS.items()}
    # Made anew each time, so that no other step counts their memory.
    makers |= {name: lambda name=name: floors(shape, rows, dtype)[name] for name in tuple(floors(shape, rows, dtype))}
    figures: dict[str, Any] = {name: [] for name in makers}
    each = max(1, -(-repeats // ROUNDS))

    _free(device)
    for _ in range(min(ROUNDS, repeats)):
        for name, make in makers.items():
            if isinstance(figures[name], str):
                continue  # a peer that is not there
            call = of_peer if name in PEERS else lambda call: call()
            timing: Timed | str = call(lambda make=make: timed(make(), device, each))
            figures[name] = timing if isinstance(timing, str) else [*figures[name], timing]
            _free(device)

    figures = {n: {"missing": f} if isinstance(f, str) else together(f)._asdict() for n, f in figures.items()}

    return {"shape": shape._asdict(), "dtype": str(dtype).removeprefix("torch."), "steps": figures}


def _free(device: torch.device) -> None:
    """Gives back all memory of the last step, that of its recordings too, so that the next one does not count it."""
    gc.collect()
    if device.type == "cuda":
        CudaGraphs.release()
        torch.cuda.empty_cache()


def table(measured: dict[str, Any]) -> str:
    """The measurements as a Markdown table, each against saedex."""
    ours = measured["steps"]["saedex"]
    lines = ["| | ms | fastest, slowest | against saedex | peak MiB |", "|---|---|---|---|---|"]
    for name, figures in measured["steps"].items():
        if "missing" in figures:
            lines.append(f"| {name} | {figures['missing'].splitlines()[0].replace('|', '/')} | | | |")
        else:
            ratio, memory = figures["seconds"] / ours["seconds"], figures["peak_bytes"] / 2**20
            times = [f"{figures[key] * 1e3:.2f}" for key in ("seconds", "fastest", "slowest")]
            lines.append(f"| {name} | {times[0]} | {times[1]}, {times[2]} | {ratio:.2f} | {memory:.0f} |")
    return "\n".join(lines)
