"""How fast the stages of a run were compared with what the machine can do, measured when a run ends."""

from __future__ import annotations

import torch

from feature_store.dictionary_files import Facts
from sae.architectures import ArchitectureConfig
from sae.foundation.device import peak_process_bytes
from sae.foundation.timing import timed
from sae.model.language_model import LanguageModel
from sae.pipeline.config import RunConfig
from sae.pipeline.sources import Sources
from sae.training.floors import Shape, floors

REPEATS = 3
WORTH_SHOWING_S = 0.5


class Rate(Facts):
    """Tokens (or activations) that a stage went through, its seconds, and the share of these that its floor takes."""

    tokens: int
    seconds: float
    utilisation: float | None = None


def rates(
    config: RunConfig, sources: Sources, seconds: dict[str, float], n_activations: int, *, n_processes: int = 1
) -> dict[str, Rate]:
    """The rate of every stage that took time worth showing.

    The floor of harvest is its matrix products (2 FLOPs per weight of the blocks that a token passes, and of the head
    and the backward pass for harvested gradients), at the rate of one large product measured now. The floor of training
    is the encoder's product and Adam alone, measured now with every dictionary's sizes. Processes divide the floors.
    """
    n_tokens = sources.train.contexts.n_contexts * config.text.ctx_len
    units = {
        "tokens": n_tokens,
        "harvest": n_tokens,
        "cache": n_tokens,
        "train": n_activations,
        "index": min(n_tokens, config.index.tokens or n_tokens) * len(config.sae),
    }
    stage_rates = {}

    for stage, n_units in units.items():
        if seconds.get(stage, 0) <= WORTH_SHOWING_S:
            continue
        floor = None
        if stage == "harvest":
            floor = n_tokens * _flops_per_token(sources) / _product_rate(sources)
        elif stage == "train":
            n_updates = n_activations / len(config.sae) / config.train.batch_tokens
            floor = n_updates * sum(_update_floor(sae, sources, config.train.batch_tokens) for sae in config.sae)
        utilisation = None if floor is None else floor / n_processes / seconds[stage]
        stage_rates[stage] = Rate(tokens=n_units, seconds=seconds[stage], utilisation=utilisation)

    return stage_rates


def _n_weights(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)


def _flops_per_token(sources: Sources) -> float:
    harvester, lm = sources.train.harvester, sources.lm
    layers = lm.blocks.modules
    hook_layers = [hook.layer for hook in harvester.hooks]
    if not harvester.kinds:
        return 2.0 * sum(_n_weights(block) for block in layers[: max(hook_layers) + 1])
    head = _n_weights(lm.model.get_output_embeddings())
    way_back = sum(_n_weights(block) for block in layers[min(hook_layers) + 1 :])
    return 2.0 * (sum(map(_n_weights, layers)) + 2 * head + way_back) * len(harvester.kinds)


def _product_rate(sources: Sources) -> float:
    """FLOPs per second of a product in the model's own shape and dtype."""
    d_model, device = sources.lm.d_model, sources.lm.device
    n_rows = 16_384 if device.type == "cuda" else 2048
    shapes = ((n_rows, d_model), (d_model, 4 * d_model))
    a, b = (torch.randn(*shape, device=device).to(sources.dtype) for shape in shapes)
    return 2.0 * n_rows * d_model * 4 * d_model / timed(lambda: a @ b, device, REPEATS).seconds


def _update_floor(sae: ArchitectureConfig, sources: Sources, batch_tokens: int) -> float:
    """Seconds of the encoder's product and of Adam for one update."""
    width, device = sources.train.harvester.width(sae.hook) * len(sae.reads), sources.lm.device
    shape = Shape(width, sae.d_sae, 1, batch_tokens)
    rows = torch.randn(batch_tokens, width, device=device)
    return sum(timed(call, device, REPEATS).seconds for call in floors(shape, rows, sources.dtype).values())


def peak_memory(lm: LanguageModel) -> dict[str, int]:
    """The most bytes that were in use at once: of the process, and of the GPU if there is one."""
    peaks = {"process": peak_process_bytes()}
    if lm.device.type == "cuda":
        peaks["gpu"] = torch.cuda.max_memory_allocated()
    return peaks


def table(seconds: dict[str, float], stage_rates: dict[str, Rate], peak_bytes: dict[str, int]) -> str:
    """The stages of a finished run as lines of text; runs of earlier versions know their seconds alone."""
    lines = [f"  {'':<10}{'tokens':>14}{'seconds':>10}{'tokens/s':>12}   of its floor's speed"]
    for stage, taken in seconds.items():
        rate = stage_rates.get(stage)
        if rate is None:
            lines.append(f"  {stage:<10}{'':>14}{taken:>10.1f}")
            continue
        share = "" if rate.utilisation is None else f"   {rate.utilisation:.0%}"
        lines.append(f"  {stage:<10}{rate.tokens:>14,}{taken:>10.1f}{rate.tokens / rate.seconds:>12,.0f}{share}")

    peaks = [f"{name} {value / 2**30:.1f} GiB" for name, value in peak_bytes.items()]
    return "\n".join([*lines, *([f"  peak memory: {', '.join(peaks)}"] if peaks else [])])
