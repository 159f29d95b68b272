"""The training loop: shuffled activations in, trained dictionaries out; several dictionaries share one stream."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from sae.architectures import ArchitectureConfig
from sae.errors import ConfigError, Interrupted
from sae.foundation.distributed import ALONE
from sae.foundation.files import write_bytes
from sae.model.hookpoints import Channel
from sae.stream.activations import Activations
from sae.stream.shuffle import RingBuffer, ShuffleConfig, ShufflePlan
from sae.training import checkpoint
from sae.training.optimiser import OptimiserConfig, learning_rate
from sae.training.trainer import SaeTrainer

LEAST_LOG_TOKENS = 20_000
CHECKPOINT_S = 120.0
AGREE_EVERY = 32  # updates between two agreements of several processes on stopping and saving
LEAST_ROWS = 32  # of a batch for every process, so that hardly ever one has none


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
        self.trainers = self.group.together(lambda: self._trainers(saes, seed, dtype))
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
        group = self.group
        if self.config.batch_tokens < LEAST_ROWS * group.size:
            raise ConfigError(f"train.batch_tokens: {group.size} processes want at least {LEAST_ROWS * group.size}.")
        if group.size > 1 and self.config.parallel == "dictionaries":
            if len(saes) < group.size:
                raise ConfigError(f"train.parallel: {len(saes)} dictionaries for {group.size} processes. Start fewer.")
            saes, group = saes[group.rank :: group.size], ALONE
        return [SaeTrainer.on(self.activations, c, seed, dtype, group, self.config) for c in saes]

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
