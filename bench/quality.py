"""Ours against the peers' TopK on exactly the same rows: python -m bench.quality --rows 200000 --out runs/quality

Run it in an environment that holds saedex and the peers (`make peers` builds one). The activations of the quickstart
model are harvested once. Every library trains its own TopK with its own loss, initialisation and optimiser on the
same batches in the same order; each one's learning rate is the best of the same list at k = 32, seed 0, by held-out
fvu. fvu, loss_recovered and dead are computed by saedex for all, on held-out documents.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.peers import PEERS, Trained
from sae.evaluation.measures.splice import log_probs
from sae.foundation.metrics import FvuMeter, loss_recovered
from sae.foundation.screen import Screen
from sae.model.hookpoints import Channel, HookPoint
from sae.pipeline.config import load_config
from sae.pipeline.sources import Sources, prepare

HOOK = HookPoint("resid_post", 8)
BATCH = 512
RATES = (4e-4, 1.5e-3, 3e-3)
CONFIG = Path(__file__).parent.parent / "training_configs" / "quickstart.yaml"


def rows_of(sources: Sources, rows: int, hook: HookPoint = HOOK) -> tuple[Tensor, Tensor]:
    """(training rows in a fixed random order, held-out rows) of a hook point, in float32."""
    parts, n_rows = [], 0
    for g in range(sources.train.n_segments):
        parts.append(sources.train.segment(g).x[Channel(hook)])
        n_rows += len(parts[-1])
        if n_rows >= rows:
            break
    train = torch.cat(parts)[:rows]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    held_out = torch.cat([sources.held_out.segment(g).x[Channel(hook)] for g in range(sources.held_out.n_segments)])
    return train[order].float(), held_out.float()


@torch.no_grad()
def judged(trained: Trained, held_out: Tensor, sources: Sources) -> dict[str, float]:
    """fvu, loss_recovered against mean ablation, and latents that fired on none of the last fifth of training rows."""
    meter = FvuMeter(held_out.shape[1])
    for x in held_out.split(4096):
        meter.add(x, trained.reconstruct(x))
    return {
        "fvu": meter.value(),
        "loss_recovered": _recovered(trained.reconstruct, held_out, sources),
        "dead": trained.dead,
    }


def _recovered(reconstruct: Callable[[Tensor], Tensor], held_out: Tensor, sources: Sources) -> float:
    from types import SimpleNamespace

    contexts, mean = sources.held_out.contexts, held_out.mean(0)
    subject: Any = SimpleNamespace(held_out=sources.held_out)
    ce = dict.fromkeys(("clean", "spliced", "mean"), 0.0)
    for start in range(0, 32, 16):
        part = slice(start, start + 16)
        documents = contexts.documents[part]
        ids = torch.from_numpy(contexts.ids[part].astype("int64"))
        batch = sources.held_out.harvester.harvest(contexts.ids[part], documents)
        x = batch.x[Channel(HOOK)][batch.keep].float()
        edits = {
            "clean": {},
            "spliced": {HOOK: (batch.keep, reconstruct(x))},
            "mean": {HOOK: (batch.keep, mean.expand_as(x))},
        }
        for name, edit in edits.items():
            ce[name] -= float(log_probs(subject, ids, documents, edit).gather(2, ids[:, 1:, None]).sum())
    return loss_recovered(ce["clean"], ce["spliced"], ce["mean"])


def main() -> None:
    """Trains everything and writes results.json and a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="activations that every dictionary is trained on")
    parser.add_argument("--d-sae", type=int, default=2048, help="latents")
    parser.add_argument("--k", type=int, nargs="+", default=[16, 32, 64], help="latents per token")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the initial weights")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates to choose from")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="folder for harvest and results")
    arguments = parser.parse_args()
    config = load_config(CONFIG)
    sources = prepare(config, arguments.out, Screen())
    train, held_out = rows_of(sources, arguments.rows)
    rates, table = {}, {}
    for name, fit in PEERS.items():
        if len(arguments.rates) == 1:
            rates[name] = arguments.rates[0]
            continue
        tried = {
            lr: judged(fit(train, arguments.d_sae, 32, 0, BATCH, lr), held_out, sources)["fvu"]
            for lr in arguments.rates
        }
        rates[name] = min(tried, key=lambda lr: tried[lr])
        print(f"{name}: learning rates {tried}", flush=True)
    for k in arguments.k:
        for name, fit in PEERS.items():
            figures = [
                judged(fit(train, arguments.d_sae, k, seed, BATCH, rates[name]), held_out, sources)
                for seed in arguments.seeds
            ]
            table[f"{name} k={k}"] = {key: [f[key] for f in figures] for key in figures[0]}
            shown = {key: f"{statistics.mean(v):.4f} +- {_error(v):.4f}" for key, v in table[f"{name} k={k}"].items()}
            print(f"k={k} {name:20s} {shown}", flush=True)
            (arguments.out / "results.json").write_text(json.dumps({"rates": rates, "table": table}, indent=1))


def _error(values: list[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
