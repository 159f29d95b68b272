"""One training step of every architecture that has hand-written kernels: python -m bench.architectures --json FILE

Width 768, 24,576 latents, 8,192 tokens, weights held (learning rate 0). Rows are normal numbers; in the second column
every 128th is 50 times as long, as language models have them.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.architectures import ARCHITECTURES
from sae.benchmarks.step import HOOK
from sae.foundation.timing import timed
from sae.model.hookpoints import Channel, HookPoint
from sae.stream.activations import ActivationStatistics
from sae.training.cuda_graphs import CudaGraphs
from sae.training.trainer import SaeTrainer

WIDTH, LATENTS, TOKENS = 768, 24_576, 8192
LOUD_EVERY, LOUDNESS = 128, 50
DEAD_AFTER = {"dead_after_tokens": 1 << 40}
THRESHOLDS = {"relu": 3.0, "gated": 3.0}  # so that they keep as many latents as the others, as after training
OTHER = HookPoint("mlp_out", 1)
KINDS: dict[str, dict[str, Any]] = {
    "topk": {}, "batch_topk": {}, "gradient": {"beta": 1.0}, "matryoshka": {}, "jumprelu": {}, "top_afa": {}, "relu": {}, "gated": {}, "multi topk": {"architecture": "topk", "multi_topk": True},
    "transcoder": {"target": OTHER}, "skip transcoder": {"architecture": "transcoder", "target": OTHER, "skip": True},
    "jumprelu transcoder": {"architecture": "jumprelu", "target": OTHER, "skip": True},
    "crosscoder": {"more_hooks": (OTHER,)},
}  # fmt: skip


def main() -> None:
    """Prints one line per architecture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=list(KINDS), help="architectures")
    parser.add_argument("--autograd", action="store_true", help="by the definition instead of by hand")
    parser.add_argument("--repeats", type=int, default=40, metavar="N", help="steps that are timed (default: 40)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    arguments = parser.parse_args()

    figures = {"device": torch.cuda.get_device_name(), "steps": {}}
    print("| | tokens | ms | fastest, slowest | MiB taken | l0 |\n|---|---|---|---|---|---|")
    for kind in arguments.kinds:
        for loud in (False, True):
            step = measured(kind, loud, arguments.repeats, by_hand=not arguments.autograd)
            figures["steps"][f"{kind}, {'some loud' if loud else 'alike'}"] = step
            times = f"{step['ms']:.2f} | {step['fastest']:.2f}, {step['slowest']:.2f}"
            print(
                f"| {kind} | {'some loud' if loud else 'alike'} | {times} | {step['MiB']:.0f} | {step['l0']:.1f} |",
                flush=True,
            )

    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def rows(loud: bool, seed: int = 1) -> Tensor:
    """Rows [tokens, width] in bfloat16; not of the dictionary's seed, or they would be its decoder rows."""
    drawn = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))
    if loud:
        drawn[::LOUD_EVERY] *= LOUDNESS
    return drawn.cuda().bfloat16()


def measured(kind: str, loud: bool, repeats: int, *, by_hand: bool) -> dict[str, float]:
    """Milliseconds of a step (median, fastest, slowest), memory taken, l0, and whether it was done by hand."""
    gc.collect()
    CudaGraphs.release()
    torch.cuda.empty_cache()

    settings = {"architecture": kind, **KINDS[kind], **DEAD_AFTER}
    config = ARCHITECTURES[settings["architecture"]].config_class(name="x", hook=HOOK, d_sae=LATENTS, **settings)
    zeros = [0.0] * WIDTH
    statistics = ActivationStatistics(WIDTH**0.5, 1.0, zeros, zeros, variance=float(WIDTH), max_norm=None)
    trainer = SaeTrainer(
        config, {HOOK: statistics, OTHER: statistics}, seed=0, dtype=torch.bfloat16, device="cuda", gradient_norm=1.0 if config.gradient else None
    )  # fmt: skip
    trainer.fused_step = trainer.fused_step if by_hand else None
    trainer.sae.b_enc.data.sub_(THRESHOLDS.get(kind, 0.0))
    channels = {Channel(HOOK): rows(loud), Channel(OTHER): rows(loud, seed=2)}
    if config.gradient:
        channels[config.gradient] = torch.randn_like(channels[Channel(HOOK)], dtype=torch.float32)

    timing = timed(lambda: trainer.step(channels, 0.0), torch.device("cuda"), repeats)
    trainer.reset_log()
    trainer.step(channels, 0.0)
    return {
        "ms": timing.seconds * 1e3,
        "fastest": timing.fastest * 1e3,
        "slowest": timing.slowest * 1e3,
        "MiB": timing.peak_bytes / 2**20,
        "l0": float(trainer.sums[2]),
        "by hand": bool(trainer.fused_step and trainer.fused_step.adam._n_updates),
    }


if __name__ == "__main__":
    main()
