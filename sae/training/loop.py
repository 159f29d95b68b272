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
from sae.foundation.screen import Progress
from sae.foundation.stop import StopRequest
from sae.foundation.tensor_files import tensors_to_write
from sae.model.hookpoints import Channel
from sae.stream.activations import Activations
from sae.stream.shuffle import RingBuffer, ShuffleConfig, ShufflePlan
from sae.training import checkpoint
from sae.training.optimiser import TrainConfig, learning_rate
from sae.training.trainer import SaeTrainer

FEWEST_LOG_TOKENS = 20_000  # between two log lines: reading a figure makes the GPU wait
CHECKPOINT_EVERY_S = 120.0  # only when is decided by a clock; what a checkpoint holds is not
AGREE_EVERY = 32  # updates between two agreements of several processes on stopping and saving
FEWEST_ROWS = 32  # rows of a batch per process, so that a process hardly ever has none

# Takes (name of the dictionary, line of figures, its trainer).
LogLine = Callable[[str, dict[str, Any], SaeTrainer], None]


@dataclass
class Position:
    """Where the loop is: everything before (cycle, batch) has been trained on."""

    cycle: int = 0
    batch: int = 0
    next_checkpoint: int = 0
    next_log: dict[str, int] = field(default_factory=dict)


class TrainingLoop:
    """Trains all dictionaries of a run on one stream of activations."""

    def __init__(
        self,
        config: TrainConfig,
        shuffle: ShuffleConfig,
        saes: tuple[ArchitectureConfig, ...],
        activations: Activations,
        *,
        seed: int,
        selection_dtype: torch.dtype,
        folder: Path,
        log: LogLine,
    ):
        self.config, self.activations, self.folder, self.log = config, activations, folder, log
        self.processes = activations.processes
        self.trainers = self.processes.raise_together(lambda: self._create_trainers(saes, seed, selection_dtype))

        device = activations.harvester.lm.device
        self.plan = ShufflePlan(activations.n_segments, shuffle.reuse, seed, device)
        max_rows = -(-activations.segment_contexts // self.processes.world_size) * activations.contexts.ctx_len
        widths = {channel: x.shape[1] for channel, x in activations.segment(0).x.items()}
        self.ring = RingBuffer(widths, self.plan.slots, max_rows, torch.bfloat16, device=device)

        self.total = int(activations.trained_rows() * shuffle.reuse * activations.kept_share())
        self.position = Position(next_checkpoint=config.checkpoint_tokens or 0)
        self.log_every = config.log_tokens or max(FEWEST_LOG_TOKENS, self.total // 500)
        self._saved_at, self._n_updates = time.monotonic(), 0

    @property
    def tokens_seen(self) -> int:
        """Activations that have been trained on."""
        return self.trainers[0].tokens_seen

    def _create_trainers(
        self, saes: tuple[ArchitectureConfig, ...], seed: int, selection_dtype: torch.dtype
    ) -> list[SaeTrainer]:
        """The trainers of this process."""
        processes = self.processes
        if self.config.batch_tokens < FEWEST_ROWS * processes.world_size:
            fewest = FEWEST_ROWS * processes.world_size
            raise ConfigError(f"train.batch_tokens: {processes.world_size} processes need at least {fewest}.")

        if processes.world_size > 1 and self.config.parallel == "dictionaries":
            if len(saes) < processes.world_size:
                raise ConfigError(
                    f"train.parallel: {len(saes)} dictionaries for {processes.world_size} processes. Start fewer."
                )
            saes, processes = saes[processes.rank :: processes.world_size], ALONE

        return [
            SaeTrainer.for_activations(
                self.activations, config, seed=seed, dtype=selection_dtype, processes=processes, train=self.config
            )
            for config in saes
        ]

    def resume(self, progress: Progress) -> int:
        """Loads the newest checkpoint, if there is one; returns the activations already trained on."""
        stored = checkpoint.newest(self.folder, progress)
        if stored is None:
            return 0
        for trainer in self.trainers:
            trainer.load_tensors(stored.tensors)
        self.position = Position(**stored.facts["position"])
        return self.tokens_seen

    def save(self) -> None:
        """Writes a checkpoint of this moment."""
        tensors = {name: t for trainer in self.trainers for name, t in trainer.tensors().items()}
        for next_log in self.processes.all_gather_objects(self.position.next_log):
            self.position.next_log |= next_log
        if self.config.parallel != "dictionaries":
            tensors = tensors_to_write(tensors, self.processes)
        facts = {"position": vars(self.position)}
        checkpoint.save(self.folder, self.tokens_seen, tensors, facts, processes=self.processes)
        self._saved_at = time.monotonic()

    def save_and_stop(self) -> NoReturn:
        """Writes a checkpoint and raises `Interrupted`."""
        self.save()
        raise Interrupted("stopped; a checkpoint is written. The same command goes on from here.")

    def run(self, progress: Progress, stop: StopRequest) -> None:
        """Trains to the end of the plan. A requested stop writes a checkpoint and raises `Interrupted`."""
        position = self.position
        for cycle in range(position.cycle, self.plan.n_cycles):
            self._fill_ring(cycle)
            order = self.ring.cycle_order(self.plan, cycle)
            batches = self.ring.batches(order, self.config.batch_tokens, position.batch, self.processes)
            for batch, counts in batches:
                if self.config.parallel != "replicas":  # then every process trains on all rows
                    gathered = {c: self.processes.all_gather_rows(rows, counts) for c, rows in batch.items()}
                    batch, counts = gathered, [sum(counts)]
                for trainer in self.trainers:
                    self._train_on(trainer, batch, counts, progress)
                position.batch += 1
                self._stop_or_save(stop)
            position.batch, position.cycle = 0, cycle + 1

    def _fill_ring(self, cycle: int) -> None:
        """Harvests the segments of a cycle that are not in the ring yet."""
        for number in self.plan.segments_in(cycle):
            if number not in self.ring.counts:
                x = self.activations.segment(number).x
                self.ring.put(number, x, self.processes.all_gather_objects(len(next(iter(x.values())))))

    def _stop_or_save(self, stop: StopRequest) -> None:
        """Stops if that was requested and saves if a checkpoint is due; several processes agree on both now and then."""
        stops, checkpoint_tokens = stop.requested, self.config.checkpoint_tokens
        saves = checkpoint_tokens is None and time.monotonic() - self._saved_at >= CHECKPOINT_EVERY_S
        if self.processes.world_size > 1:
            self._n_updates += 1
            agrees = self._n_updates % AGREE_EVERY == 0
            wishes = self.processes.all_gather_objects((stops, saves)) if agrees else [(False, False)]
            stops, saves = (any(each) for each in zip(*wishes, strict=True))

        if stops:
            self.save_and_stop()
        if checkpoint_tokens is not None and self.tokens_seen >= self.position.next_checkpoint:
            self.position.next_checkpoint, saves = self.tokens_seen + checkpoint_tokens, True
        if saves:
            self.save()

    def _train_on(
        self, trainer: SaeTrainer, batch: dict[Channel, Tensor], counts: list[int], progress: Progress
    ) -> None:
        name = trainer.config.name
        lr = learning_rate(self.config, trainer.config, trainer.tokens_seen, self.total)
        trainer.step(batch, lr, counts)
        if trainer.tokens_seen >= self.position.next_log.get(name, self.log_every):
            self.position.next_log[name] = trainer.tokens_seen + self.log_every
            line = trainer.log_line(lr)
            self.log(name, line, trainer)
            progress.update(trainer.tokens_seen, self.total, **{key: line[key] for key in ("fvu", "l0", "dead")})


def truncate_log(path: Path, tokens_seen: int) -> None:
    """Drops the lines of metrics that a resumed run will write again, and a last line that was cut short."""
    if not path.exists():
        return

    lines = []
    for line in path.read_text("utf-8").splitlines():
        try:
            if json.loads(line)["tokens_seen"] > tokens_seen:
                break
        except ValueError:
            break
        lines.append(line + "\n")

    write_bytes(path, "".join(lines).encode())
