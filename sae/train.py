"""The training loop: shuffled activations in, trained dictionaries out; several dictionaries share one stream."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from pydantic import Field
from torch import Tensor

from sae import checkpoint
from sae.activations import Activations, Statistics, batch_of
from sae.architectures import ArchitectureConfig, Batch, SparseAutoencoder, build
from sae.checkpoint import Piece, Saved
from sae.distributed import ALONE, Group
from sae.errors import ConfigError, Interrupted, NumericError
from sae.files import write_bytes
from sae.fused import FusedStep, Made
from sae.hookpoints import Channel, HookPoint
from sae.metrics import FvuMeter, batch_sums, l0
from sae.replica_step import ReplicaStep
from sae.section import Count, Section
from sae.sharded_step import ShardedStep
from sae.shuffle import RingBuffer, ShuffleConfig, ShufflePlan

LEAST_LOG_TOKENS = 20_000
CHECKPOINT_S = 120.0
AGREE_EVERY = 32  # updates between two agreements of several processes on stopping and saving
LEAST_ROWS = 32  # of a batch for every process, so that hardly ever one has none
LATENT_AXIS = {"W_enc": 1, "W_dec": 0, "b_enc": 0, "tokens_since_fired": 0}


class OptimiserConfig(Section):
    """Length of training and the optimiser; every schedule is in tokens."""

    tokens: Count = Field(default=2_000_000, ge=2, description="Tokens read from the text for training.")
    batch_tokens: Count = Field(default=1024, ge=2, description="Activations per update.")
    lr: float | None = Field(
        default=None, gt=0, lt=1, description="Adam's learning rate; none: 2e-4 / sqrt(d_sae / 2^14)."
    )
    warmup_tokens: Count = Field(
        default=100_000, ge=0, description="Activations over which the learning rate rises from 0."
    )
    decay_tokens: Count | None = Field(
        default=None,
        ge=0,
        description="Activations over which it falls to 0 at the end; none: the last fifth of training.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Arithmetic of the selection of latents; auto: the language model's. All else is float32.",
    )
    checkpoint_tokens: Count | None = Field(
        default=None, ge=1, description="Activations between two checkpoints; none: two minutes of training."
    )
    parallel: Literal["replicas", "latents", "dictionaries"] = Field(
        default="replicas",
        description="How several processes (torchrun) share training. replicas: each has every dictionary and a part of every "
        "batch; latents: each has a part of the latents; dictionaries: each has some of the dictionaries.",
    )
    log_tokens: Count | None = Field(
        default=None,
        ge=1,
        description="Activations between two lines of metrics; none: 20,000, or a 500th of training where that is more.",
    )


def learning_rate(config: OptimiserConfig, sae: ArchitectureConfig, tokens_seen: int, total_tokens: int) -> float:
    """Linear warm-up, constant, linear decay to 0: as a function of activations trained on."""
    peak = sae.lr or config.lr or 2e-4 / (sae.d_sae / 2**14) ** 0.5
    decay = total_tokens // 5 if config.decay_tokens is None else config.decay_tokens
    rise = min(1.0, (tokens_seen + config.batch_tokens) / max(config.warmup_tokens, 1))
    fall = min(1.0, (total_tokens - tokens_seen) / max(decay, 1))
    return peak * rise * max(fall, 0.0)


class SaeTrainer:
    """One dictionary under training: module, optimiser, and the figures since the last log line."""

    def __init__(
        self,
        config: ArchitectureConfig,
        statistics: dict[HookPoint, Statistics],
        seed: int,
        dtype: torch.dtype,
        device: torch.device | str,
        gradient_norm: float | None = None,
        group: Group = ALONE,
        parallel: str = "replicas",
    ):
        self.group, self.spread = group, group.size > 1 and parallel == "latents"
        self.config, self.statistics = config, statistics[config.hook]
        reads, writes = [statistics[hook] for hook in config.reads], [statistics[hook] for hook in config.writes]
        self.scale_in, self.scale_out = self._scales(reads, device), self._scales(writes, device)
        centres = [torch.tensor(s.mean if config.centre == "mean" else s.centre) * s.scale for s in writes]
        self.part = group.part(config.d_sae) if self.spread else slice(0, config.d_sae)
        own = config.model_copy(update={"d_sae": self.part.stop - self.part.start})
        self.sae: SparseAutoencoder = build(own, len(self.scale_in), len(self.scale_out), dtype)
        generator = torch.Generator().manual_seed(seed if config.seed is None else config.seed)
        self.sae.initialise(generator, torch.cat(centres), self.part.start, config.d_sae)
        self.sae.to(device)
        groups = [
            {"params": [parameter], "multiple": self.sae.lr_multiples.get(name, 1.0)}
            for name, parameter in self.sae.named_parameters()
        ]
        self.optimiser = torch.optim.Adam(groups, lr=0.0, fused=True)
        self.variance = torch.tensor(sum(s.variance * s.scale**2 for s in writes), device=device)
        if gradient_norm is not None:
            self.sae.get_buffer("gradient_norm").fill_(gradient_norm)
        self.fused = self._fused_step()
        self.tokens_seen = 0
        self.reset_log()

    @classmethod
    def on(
        cls, activations: Activations, config: ArchitectureConfig, seed: int, dtype: torch.dtype,
        group: Group = ALONE, parallel: str = "replicas",
    ) -> SaeTrainer:  # fmt: skip
        """A trainer for the rows of `activations`, with their statistics."""
        statistics = {hook: activations.statistics(hook) for hook in (*config.reads, *config.writes)}
        norm = None if config.gradient is None else activations.mean_norm(config.gradient)
        return cls(config, statistics, seed, dtype, activations.harvester.lm.device, norm, group, parallel)

    def _fused_step(self) -> FusedStep | None:
        """The step by hand that suits the dictionary and the processes; raises `ConfigError` where latents must be spread
        and cannot be."""
        if self.spread:
            if not ShardedStep.fits(self.sae) or self.config.d_sae % self.group.size:
                raise ConfigError(
                    f"{self.config.name}: train.parallel: latents is for TopK dictionaries of one hook point, on a CPU or in "
                    f"bfloat16 on a GPU of compute capability 9.0, with latents that {self.group.size} processes can share "
                    f"equally and at least k each. Use replicas or dictionaries."
                )
            return ShardedStep(self.sae, self.optimiser, self.group)
        if self.group.size > 1:
            return ReplicaStep(self.sae, self.optimiser, self.group) if ReplicaStep.fits(self.sae, self.group) else None
        return FusedStep(self.sae, self.optimiser) if FusedStep.fits(self.sae) else None

    @staticmethod
    def _scales(found: list[Statistics], device: torch.device | str) -> Tensor:
        """One factor a column: each hook point gets a median norm of sqrt(its width)."""
        return torch.cat([torch.full((len(s.centre),), s.scale) for s in found]).to(device)

    def reset_log(self) -> None:
        """Begins a new window of logged figures."""
        self.fvu = FvuMeter(self.sae.d_out, self.sae.b_dec.device)
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.sae.b_dec.device)
        self.steps = 0

    def step(self, raw: dict[Channel, Tensor], lr: float, counts: list[int] | None = None) -> None:
        """One update on rows [tokens, width] of every channel, in the language model's own units.

        `counts` are the numbers of rows of all replicas (none: there are no others).
        """
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["multiple"]
        batch = batch_of(self.config, raw, None if self.fused else torch.float32)
        counts = counts or [len(batch.x)]
        n = sum(counts)
        made = self.fused(batch, self.scale_in, self.variance, lr, self.tokens_seen, counts) if self.fused else None
        made = made or self._reference_step(batch, n)
        self.fvu.add_sums(made.figures[3], made.figures[4], made.total, n)
        self.sums += made.figures[:3]
        self.steps += 1
        self.tokens_seen += n

    def _reference_step(self, raw: Batch, n: int) -> Made:
        x = raw.x * self.scale_in
        gradient = None if raw.gradient is None else raw.gradient.float()
        batch = Batch(x, x if raw.y is raw.x else raw.y * self.scale_out, gradient)
        losses = self.sae.losses(batch, self.variance, self.tokens_seen)
        self.optimiser.zero_grad(set_to_none=True)
        share = len(x) / n
        (losses.total * share).backward()
        for name, parameter in self.sae.named_parameters():
            if parameter.grad is not None:
                self.group.sum(parameter.grad.T if name == "W_enc" else parameter.grad)  # W_enc is stored by latent
        self.sae.project_decoder_gradient()
        self.optimiser.step()
        self.sae.normalise_decoder()
        made = losses.made
        self.sae.count_firings(made.encoding, n)
        self.group.least(self.sae.tokens_since_fired)
        self.sae.observe(made)
        for figure in self.sae.buffers():
            if figure.is_floating_point():
                figure.copy_(self.group.sum(figure * share))
        if self.fused:
            self.fused.reset()
            self.optimiser.zero_grad(set_to_none=True)
        mean_l0 = l0(made.encoding.top_acts.detach())
        error, square, total = batch_sums(made.batch.y, made.x_hat)
        figures = [t.detach().double() * share for t in (losses.total, losses.aux, mean_l0)]
        return Made(self.group.sum(torch.stack([*figures, error, square])), self.group.sum(total))

    def log_line(self, lr: float) -> dict[str, float | int]:
        """Figures since the last line; raises `NumericError` where the loss is not finite."""
        loss, aux, mean_l0 = (self.sums / max(self.steps, 1)).tolist()
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise NumericError(
                f"{self.config.name}: the loss is {loss} after {self.tokens_seen:,} tokens. Lower train.lr; "
                "the last checkpoint is sound."
            )
        line = {"tokens_seen": self.tokens_seen, "loss": loss, "fvu": self.fvu.value(), "l0": mean_l0}
        line |= {"dead": self.dead(), "aux_loss": aux, "lr": lr}
        self.reset_log()
        return line

    def dead(self) -> int:
        """How many latents are dead; every process must ask."""
        own = self.sae.dead().sum()
        return int(self.group.sum(own) if self.spread else own)

    def piece(self, name: str, value: Tensor) -> Tensor | Piece:
        """A parameter, a moment of it or a buffer, or what this process has of it."""
        axis = LATENT_AXIS.get(name)
        by_replica = isinstance(self.fused, ReplicaStep) and name in ("W_enc", "W_dec")
        if axis is None or not (self.spread or by_replica):
            return value
        part = self.fused.part if isinstance(self.fused, ReplicaStep) else self.part
        length = part.stop - part.start
        return Piece(value if value.shape[axis] == length else value.narrow(axis, part.start, length), axis, part.start)

    def tensors(self) -> dict[str, Tensor | Piece]:
        """Everything that a resume needs, by name."""
        found = {f"sae.{name}": self.piece(name, value) for name, value in self.sae.state_dict().items()}
        found["tokens_since_fired"] = self.piece("tokens_since_fired", self.sae.tokens_since_fired)
        for index, (name, parameter) in enumerate(self.sae.named_parameters()):
            for moment, value in self.optimiser.state[parameter].items():
                found[f"adam.{index}.{moment}"] = value if moment == "step" else self.piece(name, value)
        found |= {"fvu.error": self.fvu.error, "fvu.square": self.fvu.square, "fvu.total": self.fvu.total}
        found |= {"sums": self.sums, "counts": torch.tensor([self.tokens_seen, self.steps, self.fvu.rows])}
        return {f"{self.config.name}/{name}": value for name, value in found.items()}

    def load_tensors(self, saved: Saved) -> None:
        """The inverse of `tensors`, in place, whatever number of processes wrote them."""
        device, prefix = self.sums.device, f"{self.config.name}/"

        def read(name: str, of: str = "") -> Tensor:
            found = saved.read(prefix + name, self.part if self.spread and of in LATENT_AXIS else None)
            return found.to(device)

        state = self.sae.state_dict()
        self.sae.load_state_dict({name: read(f"sae.{name}", name) for name in state})
        self.sae.tokens_since_fired.copy_(read("tokens_since_fired", "tokens_since_fired"))
        for index, (name, parameter) in enumerate(self.sae.named_parameters()):
            if f"{prefix}adam.{index}.step" in saved:
                moments = {"step": read(f"adam.{index}.step")}
                for moment in ("exp_avg", "exp_avg_sq"):
                    whole = torch.empty_like(parameter).copy_(read(f"adam.{index}.{moment}", name))
                    moments[moment] = self.fused.own(whole, name).clone() if self.fused else whole
                self.optimiser.state[parameter] = moments
        if self.fused:
            self.fused.reset()
        self.fvu.error, self.fvu.square, self.fvu.total = (read(f"fvu.{n}") for n in ("error", "square", "total"))
        self.sums = read("sums")
        self.tokens_seen, self.steps, self.fvu.rows = read("counts").tolist()


@dataclass
class Position:
    """Where the loop is: everything before (cycle, batch) has been trained on."""

    cycle: int = 0
    batch: int = 0
    next_checkpoint: int = 0
    next_log: dict[str, int] = field(default_factory=dict)


class TrainingRun:
    """All dictionaries of a run on one stream of activations."""

    def __init__(
        self,
        config: OptimiserConfig,
        shuffle: ShuffleConfig,
        saes: tuple[ArchitectureConfig, ...],
        activations: Activations,
        seed: int,
        dtype: torch.dtype,
        folder: Path,
        log: Callable[[str, dict[str, Any], SaeTrainer], None],
    ):
        self.config, self.activations, self.folder, self.log = config, activations, folder, log
        self.group = activations.group
        self.trainers = self._trainers(saes, seed, dtype)
        device = activations.harvester.lm.device
        self.plan = ShufflePlan(activations.n_segments, shuffle.reuse, seed, device)
        max_rows = -(-activations.segment_contexts // self.group.size) * activations.contexts.ctx_len
        widths = {channel: x.shape[1] for channel, x in activations.segment(0).x.items()}
        self.ring = RingBuffer(widths, self.plan.slots, max_rows, torch.bfloat16, device)
        self.total = int(activations.trained_rows() * shuffle.reuse * activations.kept_share())
        self.position = Position(next_checkpoint=config.checkpoint_tokens or 0)
        self.log_every = config.log_tokens or max(LEAST_LOG_TOKENS, self.total // 500)
        self._saved_at, self._updates = time.monotonic(), 0

    def resume(self, warn: Callable[[str], None]) -> int:
        """Loads the newest checkpoint, if there is one; returns the activations already trained on."""
        found = checkpoint.newest(self.folder, warn)
        if found is None:
            return 0
        for trainer in self.trainers:
            trainer.load_tensors(found)
        self.position = Position(**found.facts["position"])
        return self.trainers[0].tokens_seen

    def _trainers(self, saes: tuple[ArchitectureConfig, ...], seed: int, dtype: torch.dtype) -> list[SaeTrainer]:
        """Those of this process."""
        group, parallel = self.group, self.config.parallel
        if self.config.batch_tokens < LEAST_ROWS * group.size:
            raise ConfigError(f"train.batch_tokens: {group.size} processes want at least {LEAST_ROWS * group.size}.")
        if group.size > 1 and parallel == "dictionaries":
            if len(saes) < group.size:
                raise ConfigError(f"train.parallel: {len(saes)} dictionaries for {group.size} processes. Start fewer.")
            saes, group = saes[group.rank :: group.size], ALONE
        return [SaeTrainer.on(self.activations, c, seed, dtype, group, parallel) for c in saes]

    def save(self) -> None:
        """Writes a checkpoint of this moment."""
        tensors = {name: t for trainer in self.trainers for name, t in trainer.tensors().items()}
        for next_log in self.group.values(self.position.next_log):
            self.position.next_log |= next_log
        if self.config.parallel != "dictionaries":
            tensors = checkpoint.once(tensors, self.group)
        facts = {"position": vars(self.position)}
        checkpoint.save(self.folder, self.trainers[0].tokens_seen, tensors, facts, self.group)
        self._saved_at = time.monotonic()

    def stop(self) -> NoReturn:
        """Writes a checkpoint and raises `Interrupted`."""
        self.save()
        raise Interrupted("stopped; a checkpoint is written. The same command goes on from here.")

    def run(self, report: Callable[[int, dict[str, Any]], None], stopping: Callable[[], bool]) -> None:
        """Trains to the end of the plan; a stop that is asked for writes a checkpoint and raises `Interrupted`."""
        position = self.position
        for cycle in range(position.cycle, self.plan.n_cycles):
            for g in self.plan.segments_in(cycle):
                if g not in self.ring.counts:
                    x = self.activations.segment(g).x
                    self.ring.put(g, x, self.group.values(len(next(iter(x.values())))))
            order = self.ring.cycle_order(self.plan, cycle)
            for batch, counts in self.ring.batches(order, self.config.batch_tokens, position.batch, self.group):
                if self.config.parallel != "replicas":
                    batch = {channel: self.group.join(rows, counts) for channel, rows in batch.items()}
                    counts = [sum(counts)]
                for trainer in self.trainers:
                    self._train_on(trainer, batch, counts, report)
                position.batch += 1
                self._stop_or_save(stopping)
            position.batch, position.cycle = 0, cycle + 1

    def _stop_or_save(self, stopping: Callable[[], bool]) -> None:
        """Does what is asked for, or due; several processes agree on it now and then."""
        stop, seen, every = stopping(), self.trainers[0].tokens_seen, self.config.checkpoint_tokens
        save = every is None and time.monotonic() - self._saved_at >= CHECKPOINT_S
        if self.group.size > 1:
            self._updates += 1
            agreed = self._updates % AGREE_EVERY == 0
            found = self.group.values((stop, save)) if agreed else [(False, False)]
            stop, save = (any(each) for each in zip(*found, strict=True))
        if stop:
            self.stop()
        if every is not None and seen >= self.position.next_checkpoint:
            self.position.next_checkpoint, save = seen + every, True
        if save:
            self.save()

    def _train_on(
        self, trainer: SaeTrainer, raw: dict[Channel, Tensor], counts: list[int],
        report: Callable[[int, dict[str, Any]], None],
    ) -> None:  # fmt: skip
        name = trainer.config.name
        lr = learning_rate(self.config, trainer.config, trainer.tokens_seen, self.total)
        trainer.step(raw, lr, counts)
        if trainer.tokens_seen >= self.position.next_log.get(name, self.log_every):
            self.position.next_log[name] = trainer.tokens_seen + self.log_every
            line = trainer.log_line(lr)
            self.log(name, line, trainer)
            report(trainer.tokens_seen, line)


def truncate_log(path: Path, tokens_seen: int) -> None:
    """Drops the lines of metrics that a resumed run will write again, and one that was cut short."""
    if path.exists():
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["tokens_seen"] > tokens_seen:
                    break
            except ValueError:
                break
            kept.append(line + "\n")
        write_bytes(path, "".join(kept).encode())
