"""How fast the stages of a run were, against what the machine could do: measured when a run ends."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from sae.architectures import ArchitectureConfig
from sae.benchmarks.step import Shape, floors
from sae.foundation.device import peak_process_bytes
from sae.foundation.timing import timed
from sae.model.hookpoints import blocks
from sae.model.language_model import LanguageModel
from sae.pipeline.config import TrainConfig
from sae.pipeline.prepare import Rooms

REPEATS = 3


class Rate(NamedTuple):
    """A stage: tokens (or activations) it went through, seconds, and the share of these that its floor would take."""

    tokens: int
    seconds: float
    utilisation: float | None


def rates(
    config: TrainConfig, rooms: Rooms, seconds: dict[str, float], n_activations: int, n_processes: int = 1
) -> dict[str, Rate]:
    """The stages of a run that took time worth counting.

    The floor of harvest is its matrix products (2 FLOPs for every weight of the blocks that a token passes, and of the
    head and the way back where gradients are harvested) at the rate of one large product measured now; that of training
    are the encoder's product and Adam alone, measured now with every dictionary's sizes. Processes divide the floors.
    """
    device = rooms.lm.device
    n_tokens = rooms.train.contexts.n_contexts * config.text.ctx_len
    work = {
        "tokens": n_tokens,
        "harvest": n_tokens,
        "cache": n_tokens,
        "train": n_activations,
        "index": n_tokens * len(config.sae),
    }
    found = {}
    for stage, tokens in work.items():
        if seconds.get(stage, 0) > 0.5:
            floor = None
            if stage == "harvest":
                floor = n_tokens * _flops_per_token(rooms) / _product_rate(rooms, device)
            elif stage == "train":
                floor = sum(
                    _update_floor(sae, rooms, config.train.batch_tokens)
                    * (n_activations / len(config.sae) / config.train.batch_tokens)
                    for sae in config.sae
                )
            utilisation = None if floor is None else floor / n_processes / seconds[stage]
            found[stage] = Rate(tokens, seconds[stage], utilisation)
    return found


def _weights(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)


def _flops_per_token(rooms: Rooms) -> float:
    harvester, lm = rooms.train.harvester, rooms.lm
    layers = blocks(lm.body, lm.n_layers)[1]
    hooks = [hook.layer for hook in harvester.hooks]
    if not harvester.kinds:
        return 2.0 * sum(_weights(block) for block in layers[: max(hooks) + 1])
    head = _weights(lm.model.get_output_embeddings())
    back = sum(_weights(block) for block in layers[min(hooks) + 1 :])
    return 2.0 * (sum(map(_weights, layers)) + 2 * head + back) * len(harvester.kinds)


def _product_rate(rooms: Rooms, device: torch.device) -> float:
    """FLOPs per second of a product in the model's own shape and dtype."""
    d_model = rooms.lm.d_model
    rows = 16_384 if device.type == "cuda" else 2048
    a, b = (torch.randn(*shape, device=device).to(rooms.dtype) for shape in ((rows, d_model), (d_model, 4 * d_model)))
    return 2.0 * rows * d_model * 4 * d_model / timed(lambda: a @ b, device, REPEATS).seconds


def _update_floor(sae: ArchitectureConfig, rooms: Rooms, batch_tokens: int) -> float:
    """Seconds of the encoder's product and of Adam for one update."""
    width = rooms.train.harvester.width(sae.hook) * len(sae.reads)
    shape = Shape(width, sae.d_sae, 1, batch_tokens)
    rows = torch.randn(batch_tokens, width, device=rooms.lm.device)
    return sum(timed(call, rooms.lm.device, REPEATS).seconds for call in floors(shape, rows, rooms.dtype).values())


def peak_memory(lm: LanguageModel) -> dict[str, int]:
    """The most bytes that were in use: of the process, and of the GPU where there is one."""
    found = {"process": peak_process_bytes()}
    if lm.device.type == "cuda":
        found["gpu"] = torch.cuda.max_memory_allocated()
    return found


def table(summary: dict[str, Any]) -> str:
    """The stages of a finished run as lines of text; runs of earlier versions know their seconds alone."""
    lines = [f"  {'':<10}{'tokens':>14}{'seconds':>10}{'tokens/s':>12}   of its floor's speed"]
    for stage, seconds in summary["seconds"].items():
        rate = summary.get("rates", {}).get(stage)
        if rate is None:
            lines.append(f"  {stage:<10}{'':>14}{seconds:>10.1f}")
            continue
        share = "" if rate["utilisation"] is None else f"   {rate['utilisation']:.0%}"
        lines.append(
            f"  {stage:<10}{rate['tokens']:>14,}{seconds:>10.1f}{rate['tokens'] / rate['seconds']:>12,.0f}{share}"
        )
    peaks = [f"{name} {value / 2**30:.1f} GiB" for name, value in summary.get("peak_bytes", {}).items()]
    return "\n".join([*lines, *([f"  peak memory: {', '.join(peaks)}"] if peaks else [])])
