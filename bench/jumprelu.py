"""Ours against the peers' JumpReLU at one target l0, on exactly the same rows: python -m bench.jumprelu --l0 16

Run it in an environment that holds saedex and the peers (`make peers` builds one). The activations of a run's config are
harvested once. Every library trains its own JumpReLU, with its own loss on a target l0, initialisation, bandwidth and
optimiser, on the same batches in the same order; each one's learning rate is the best of the same list by held-out fvu.
fvu, l0 and dead (latents that fire on none of the held-out rows) are computed by saedex for all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.peers import schedule, train_ours
from bench.quality import CONFIG, rows_of
from sae.foundation.metrics import FvuMeter
from sae.foundation.screen import Screen
from sae.pipeline.config import load_config
from sae.pipeline.sources import prepare


class Rows(NamedTuple):
    """What every library trains on, in one order: batches of rows, so many times over."""

    train: Tensor
    batch: int
    epochs: int

    @property
    def n_updates(self) -> int:
        """Updates of a training."""
        return len(self.train) // self.batch * self.epochs

    def batches(self) -> Iterator[tuple[int, int, Tensor]]:
        """Every update's number, how many there are, and its rows."""
        n_batches = len(self.train) // self.batch
        for step in range(self.n_updates):
            start = step % n_batches * self.batch
            yield step, self.n_updates, self.train[start : start + self.batch]


class Trained(NamedTuple):
    """A trained dictionary: activations of rows, and their reconstruction."""

    encode: Callable[[Tensor], Tensor]
    reconstruct: Callable[[Tensor], Tensor]


def ours(rows: Rows, d_sae: int, l0: float, seed: int, lr: float) -> Trained:
    """saedex."""
    from sae.architectures import build
    from sae.architectures.jumprelu import JumpReluConfig
    from sae.model.hookpoints import HookPoint

    config = JumpReluConfig(name="x", hook=HookPoint("resid_post", 0), d_sae=d_sae, target_l0=l0)
    sae = build(config, rows.train.shape[1])
    scale = train_ours(sae, rows.train, rows.batches(), seed, lr)

    def encode(x: Tensor) -> Tensor:
        code = sae.encode(x * scale)
        return torch.zeros(len(x), d_sae, device=x.device).scatter_add_(
            1, code.top_indices.long(), code.top_acts.float()
        )

    return Trained(encode, lambda x: sae(x * scale) / scale)


def dictionary_learning(rows: Rows, d_sae: int, l0: float, seed: int, lr: float) -> Trained:
    """dictionary-learning."""
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer

    torch.manual_seed(seed)
    scale = 1 / rows.train[:8192].square().sum(1).mean().sqrt()
    trainer: Any = JumpReluTrainer(
        steps=rows.n_updates, activation_dim=rows.train.shape[1], dict_size=d_sae, layer=0, lm_name="model", lr=lr,
        seed=seed, target_l0=l0, warmup_steps=rows.n_updates // 10, sparsity_warmup_steps=rows.n_updates // 10,
        decay_start=int(0.8 * rows.n_updates), device=str(rows.train.device),
    )  # fmt: skip
    for step, _, x in rows.batches():
        trainer.update(step, x * scale)
    sae = trainer.ae
    return Trained(lambda x: sae.encode(x * scale), lambda x: sae(x * scale) / scale)


def saelens(rows: Rows, d_sae: int, l0: float, seed: int, lr: float) -> Trained:
    """sae-lens with the quadratic penalty."""
    return _saelens(rows, d_sae, l0, seed, lr)


def saelens_pre_act(rows: Rows, d_sae: int, l0: float, seed: int, lr: float) -> Trained:
    """sae-lens with the quadratic penalty and its loss against dead latents."""
    return _saelens(rows, d_sae, l0, seed, lr, pre_act_loss_coefficient=3e-6, jumprelu_ste_to_input=True)


def _saelens(rows: Rows, d_sae: int, l0: float, seed: int, lr: float, **settings: Any) -> Trained:
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    torch.manual_seed(seed)
    d, device = rows.train.shape[1], str(rows.train.device)
    scale = d**0.5 / rows.train[:8192].norm(dim=1).mean()
    config = JumpReLUTrainingSAEConfig(
        d_in=d, d_sae=d_sae, device=device, jumprelu_sparsity_loss_mode="quadratic", target_l0=l0, **settings
    )
    sae: Any = JumpReLUTrainingSAE(config)
    optimiser = torch.optim.Adam(sae.parameters(), lr=lr, betas=(0.9, 0.999), fused=True)
    since = torch.zeros(d_sae, device=device)
    for step, steps, x in rows.batches():
        optimiser.param_groups[0]["lr"] = lr * schedule(step, steps)
        risen = min(1.0, (step + 1) / (steps / 10))
        out = sae.training_forward_pass(TrainStepInput(x * scale, {"l0": risen}, since > 1000, step, False))
        optimiser.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()
        since = torch.where((out.feature_acts > 0).any(0), 0, since + 1)
    return Trained(lambda x: sae.encode(x * scale), lambda x: sae.decode(sae.encode(x * scale)) / scale)


LIBRARIES = {
    "saedex": ours,
    "dictionary_learning": dictionary_learning,
    "saelens": saelens,
    "saelens, pre-act loss": saelens_pre_act,
}


@torch.no_grad()
def judged(trained: Trained, held_out: Tensor) -> dict[str, float]:
    """fvu, l0 and the number of latents that stay silent, over the held-out rows."""
    meter, fired, n_firings = FvuMeter(held_out.shape[1]), torch.zeros(()), 0
    for x in held_out.split(4096):
        meter.add(x.cpu(), trained.reconstruct(x).cpu())
        acts = trained.encode(x)
        fired, n_firings = fired + (acts > 0).sum(0).cpu(), n_firings + int((acts > 0).sum())
    return {"fvu": meter.value(), "l0": n_firings / len(held_out), "dead": int((fired == 0).sum())}


def main() -> None:
    """Trains everything, prints a line each and writes jumprelu.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG, help="run whose activations are taken")
    parser.add_argument("--rows", type=int, default=200_000, help="activations that every dictionary is trained on")
    parser.add_argument("--epochs", type=int, default=1, help="times that they are gone through")
    parser.add_argument("--d-sae", type=int, default=2048, help="latents")
    parser.add_argument("--l0", type=float, default=16, help="target of all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of the initial weights")
    parser.add_argument("--rates", type=float, nargs="+", default=[4e-4, 1.5e-3, 3e-3], help="learning rates to try")
    parser.add_argument(
        "--libraries", nargs="+", default=list(LIBRARIES), choices=list(LIBRARIES), help="which to train"
    )
    parser.add_argument("--device", default="cpu", help="where to train")
    parser.add_argument("--out", type=Path, default=Path("runs/jumprelu"), help="folder for harvest and results")
    arguments = parser.parse_args()

    config = load_config(arguments.config)
    arguments.out.mkdir(parents=True, exist_ok=True)
    train, held_out = rows_of(prepare(config, arguments.out, Screen()), arguments.rows, config.sae[0].hook)
    rows = Rows(train.to(arguments.device), 2048, arguments.epochs)
    held_out, results = held_out[:100_000].to(arguments.device), {}
    for name in arguments.libraries:
        for lr in arguments.rates:
            figures = [
                judged(LIBRARIES[name](rows, arguments.d_sae, arguments.l0, seed, lr), held_out)
                for seed in arguments.seeds
            ]
            results[f"{name} {lr:g}"] = figures
            print(f"{name:24s} lr {lr:<8g}", *[{k: round(v, 4) for k, v in f.items()} for f in figures], flush=True)
            (arguments.out / "jumprelu.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
