"""One function per library that trains its TopK on given rows: its own loss, initialisation and constraints.

The schedule is the same for all: Adam, a tenth of the updates warm-up, the last fifth linear decay to 0. Inputs are
scaled as each library does by default: ours to a median norm of sqrt(d), SAELens to a mean norm of sqrt(d),
dictionary_learning to a mean squared norm of 1, sparsify not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.foundation.metrics import geometric_median


class Trained(NamedTuple):
    """A trained TopK: rows to reconstructions, and the latents that fire on none of the last fifth of the rows."""

    reconstruct: Callable[[Tensor], Tensor]
    dead: int


def schedule(step: int, steps: int) -> float:
    """Share of the learning rate: a tenth of the updates warm-up, the last fifth linear decay to 0."""
    return min(1.0, (step + 1) / (steps / 10)) * min(1.0, (steps - step) / (steps / 5))


def _batches(rows: Tensor, size: int) -> Iterator[tuple[int, int, Tensor]]:
    parts = rows.split(size)
    for step, x in enumerate(parts):
        yield step, len(parts), x


def _silent(fired: Callable[[Tensor], Tensor], rows: Tensor, d_sae: int) -> int:
    seen = torch.zeros(d_sae, dtype=torch.bool)
    for x in rows[-len(rows) // 5 :].split(4096):
        seen |= fired(x)
    return int((~seen).sum())


def train_ours(sae: Any, rows: Tensor, batches: Iterator[tuple[int, int, Tensor]], seed: int, lr: float) -> Tensor:
    """Trains a dictionary of saedex on batches of `rows` (update, updates in all, rows); returns what scales its input."""
    from sae.architectures import Batch

    d = rows.shape[1]
    norms = rows[:8192].norm(dim=1)
    scale = d**0.5 / norms.median()
    sample = rows[:8192][norms * scale <= 3 * d**0.5] * scale
    sae.initialise(torch.Generator().manual_seed(seed), geometric_median(sample).cpu())
    sae.to(rows.device)
    sae.calibrate(sample)
    variance = (sample - sample.mean(0)).square().sum(1).mean()
    groups = [{"params": [p], "rate": lr * sae.lr_multiples.get(n, 1.0)} for n, p in sae.named_parameters()]
    optimiser = torch.optim.Adam(groups, lr=lr, fused=True)
    tokens_seen = 0

    for step, steps, x in batches:
        for group in optimiser.param_groups:
            group["lr"] = group["rate"] * schedule(step, steps)
        losses = sae.losses(Batch(x * scale, x * scale), variance, tokens_seen)
        optimiser.zero_grad()
        losses.total.backward()
        sae.project_decoder_gradient()
        optimiser.step()
        sae.normalise_decoder()
        sae.count_firings(losses.training_pass.encoding)
        sae.observe(losses.training_pass)
        tokens_seen += len(x)

    sae.eval()
    return scale


def ours(rows: Tensor, d_sae: int, k: int, seed: int, batch: int, lr: float) -> Trained:
    """saedex."""
    from sae.architectures import build
    from sae.architectures.topk import TopKConfig
    from sae.model.hookpoints import HookPoint

    config = TopKConfig(name="x", hook=HookPoint("resid_post", 8), d_sae=d_sae, k=k, dead_after_tokens=50_000)
    sae = build(config, rows.shape[1])
    scale = train_ours(sae, rows, _batches(rows, batch), seed, lr)

    @torch.no_grad()
    def fired(x: Tensor) -> Tensor:
        code = sae.encode(x * scale)
        return torch.zeros(d_sae, dtype=torch.bool).index_fill(0, code.top_indices[code.top_acts > 0], True)

    return Trained(lambda x: sae(x * scale) / scale, _silent(fired, rows, d_sae))


def sparsify(rows: Tensor, d_sae: int, k: int, seed: int, batch: int, lr: float) -> Trained:
    """eai-sparsify."""
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(seed)
    sae = SparseCoder(rows.shape[1], SparseCoderConfig(num_latents=d_sae, k=k), dtype=torch.float32)
    sae.b_dec.data = rows[:batch].mean(0)
    optimiser = torch.optim.Adam(sae.parameters(), lr=lr, fused=True)
    for step, steps, x in _batches(rows, batch):
        optimiser.param_groups[0]["lr"] = lr * schedule(step, steps)
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x)
        optimiser.zero_grad()
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
    sae.set_decoder_norm_to_unit_norm()

    @torch.no_grad()
    def fired(x: Tensor) -> Tensor:
        out = sae.encode(x)
        return torch.zeros(d_sae, dtype=torch.bool).index_fill(0, out.top_indices[out.top_acts > 0], True)

    return Trained(torch.no_grad()(lambda x: sae(x).sae_out.float()), _silent(fired, rows, d_sae))


def dictionary_learning(rows: Tensor, d_sae: int, k: int, seed: int, batch: int, lr: float) -> Trained:
    """dictionary-learning."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    scale = 1 / rows[:8192].square().sum(1).mean().sqrt()
    steps = len(rows.split(batch))
    trainer: Any = TopKTrainer(
        steps=steps, activation_dim=rows.shape[1], dict_size=d_sae, k=k, layer=8, lm_name="model", lr=lr, seed=seed,
        device="cpu", warmup_steps=max(1, steps // 10), decay_start=int(0.8 * steps),
    )  # fmt: skip
    for step, _, x in _batches(rows, batch):
        trainer.update(step, x * scale)
    sae = trainer.ae

    @torch.no_grad()
    def fired(x: Tensor) -> Tensor:
        return (sae.encode(x * scale) > 0).any(0)

    return Trained(torch.no_grad()(lambda x: sae(x * scale) / scale), _silent(fired, rows, d_sae))


def saelens(rows: Tensor, d_sae: int, k: int, seed: int, batch: int, lr: float) -> Trained:
    """sae-lens."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    torch.manual_seed(seed)
    scale = rows.shape[1] ** 0.5 / rows[:8192].norm(dim=1).mean()
    sae: Any = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=rows.shape[1], d_sae=d_sae, k=k, device="cpu"))
    optimiser = torch.optim.Adam(sae.parameters(), lr=lr, betas=(0.9, 0.999), fused=True)
    since = torch.zeros(d_sae)
    for step, steps, x in _batches(rows, batch):
        optimiser.param_groups[0]["lr"] = lr * schedule(step, steps)
        step_input = TrainStepInput(x * scale, {}, since > 1000, step, False)
        out = sae.training_forward_pass(step_input)
        optimiser.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()
        acts = out.feature_acts.to_dense() if out.feature_acts.is_sparse else out.feature_acts
        since = torch.where((acts > 0).any(0), 0, since + 1)

    @torch.no_grad()
    def fired(x: Tensor) -> Tensor:
        acts = sae.encode(x * scale)
        return ((acts.to_dense() if acts.is_sparse else acts) > 0).any(0)

    return Trained(torch.no_grad()(lambda x: sae.decode(sae.encode(x * scale)) / scale), _silent(fired, rows, d_sae))


PEERS = {"saedex": ours, "sparsify": sparsify, "dictionary_learning": dictionary_learning, "saelens": saelens}
