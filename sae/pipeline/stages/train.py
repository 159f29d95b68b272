"""Trains all dictionaries of a run on one stream of activations, and publishes them."""

from __future__ import annotations

from typing import Any, final

import torch

from sae.foundation.screen import Progress
from sae.pipeline.provenance import provenance_of
from sae.pipeline.stage import Run, Stage
from sae.pipeline.stages.prepare import Prepare
from sae.publish import dictionary
from sae.training.loop import TrainingLoop, truncate_log
from sae.training.trainer import SaeTrainer


@final
class Train(Stage):
    """Trained and published dictionaries."""

    title = "train"
    needs = (Prepare,)
    workers = "all"

    def done(self, run: Run) -> bool:
        """Whether every dictionary is published."""
        return all((folder / "card.json").exists() for folder in run.config.dictionary_folders.values())

    def work(self, run: Run) -> None:
        """Resumes from the newest checkpoint, trains to the end, publishes."""
        config = run.config
        try:
            with run.screen.progress("train", config.train.tokens * config.shuffle.reuse) as progress:
                loop = self._loop(run)
                self._resume(run, loop, progress)
                self._train(run, loop, progress)
        finally:
            _split_timings(run)

        for trainer in loop.trainers:
            _publish(run, trainer)

        run.processes.barrier()

    def _loop(self, run: Run) -> TrainingLoop:
        config, sources = run.config, run.prepared
        return TrainingLoop(
            config.train,
            config.shuffle,
            config.sae,
            sources.train,
            seed=config.seed,
            selection_dtype=sources.dtype if config.train.dtype == "auto" else getattr(torch, config.train.dtype),
            folder=run.folder / "checkpoints",
            log=lambda name, line, trainer: _log(run, name, line, trainer),
        )

    def _resume(self, run: Run, loop: TrainingLoop, progress: Progress) -> None:
        n_trained = loop.resume(progress)
        if n_trained:
            progress.say(f"resuming after {n_trained:,} of {loop.total:,} activations")
        if _logs(run) and run.log is not None:
            for trainer in loop.trainers:
                truncate_log(run.log.path(trainer.config.name), trainer.tokens_seen)
        progress.update(n_trained, loop.total)

    def _train(self, run: Run, loop: TrainingLoop, progress: Progress) -> None:
        n_harvested = 0

        def after_pass(n_tokens: int) -> None:
            nonlocal n_harvested
            n_harvested += n_tokens * run.processes.world_size
            progress.update(loop.tokens_seen, harvested=n_harvested)
            # One process may stop in the middle of a harvest; several agree on it between updates.
            if run.stop.requested and run.processes.world_size == 1:
                loop.save_and_stop()

        with run.stop.held(), run.prepared.train.harvester.observed(after_pass):
            loop.run(progress, run.stop)
            if any(run.processes.all_gather_objects(run.stop.requested)):
                loop.save_and_stop()


def _logs(run: Run) -> bool:
    """Whether this process is the first, or has metrics that the first one does not have."""
    return run.processes.is_first or run.config.train.parallel == "dictionaries"


def _log(run: Run, name: str, line: dict[str, Any], trainer: SaeTrainer) -> None:
    if run.log is None or not _logs(run):
        return
    histograms = {}
    if run.log.wants_histograms:
        histograms["tokens_since_fired"] = trainer.sae.tokens_since_fired.cpu().numpy()
        histograms["encoder_bias"] = trainer.sae.b_enc.detach().cpu().numpy()
    run.log.line(name, line, histograms)


def _split_timings(run: Run) -> None:
    """Harvest and cache work lazily inside training; subtracts their time, so that each reports its own."""
    activations, seconds = run.prepared.train, run.screen.seconds
    inside = {"harvest": activations.harvest_s}
    if activations.cache is not None:
        inside["cache"] = activations.cache.traffic.seconds
    for title, time in inside.items():
        seconds["train"] -= time
        seconds[title] = seconds.get(title, 0.0) + time


def _publish(run: Run, trainer: SaeTrainer) -> None:
    """Writes the dictionary folder; its weights take activations in the language model's own units."""
    provenance = provenance_of(run, trainer)
    if trainer.fused_step:
        trainer.fused_step.gather_weights()

    reads, writes = trainer.config.reads, trainer.config.writes
    if reads == writes and len(reads) == 1:
        trainer.sae.fold_scale(trainer.statistics.scale)
    else:
        trainer.sae.fold_scale(trainer.scale_in, trainer.scale_out)

    folder = run.config.dictionary_folders[trainer.config.name]
    if trainer.is_spread:
        tensors = {name: trainer.piece(name, value) for name, value in trainer.sae.state_dict().items()}
        dictionary.publish_shards(
            folder,
            trainer.sae,
            trainer.config,
            tensors=tensors,
            provenance=provenance,
            processes=trainer.processes,
        )
    elif trainer.processes.is_first:
        dictionary.publish(folder, trainer.sae, provenance)
