"""A whole run, room by room; every room's result is kept, so the same command goes on where it stopped."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import yaml

from feature_store.queries import Store
from feature_store.writer import drop, read_pointer
from sae.architectures import ArchitectureConfig, SparseAutoencoder
from sae.errors import ConfigError, Interrupted
from sae.evaluation import plots
from sae.evaluation.evaluate import evaluate, subject_of
from sae.foundation.distributed import ALONE, Group
from sae.foundation.files import owned, write_bytes, write_json
from sae.foundation.screen import Screen
from sae.interpret.interpret import interpret
from sae.interpret.running import Running
from sae.model import language_model
from sae.pipeline import efficiency
from sae.pipeline.config import TrainConfig
from sae.pipeline.prepare import Rooms, prepare
from sae.pipeline.run_log import LogConfig, MetricsLog
from sae.publish import dictionary, parquet
from sae.publish.index import index
from sae.stream.activations import Activations
from sae.stream.harvest import Harvester
from sae.text import tokens
from sae.training.loop import TrainingRun, truncate_log
from sae.training.trainer import SaeTrainer


def run(config: TrainConfig, screen: Screen, group: Group = ALONE) -> dict[str, Any]:
    """Trains, evaluates, indexes, labels and publishes every dictionary of the config; returns the summary.

    The processes of a `group` share a run folder and the work of it.
    """
    folder = config.folder
    with ExitStack() as held, _Stop().listening() as stop:
        summary = group.from_first(lambda: _begin(config, folder, screen, held))
        if summary is not None:
            return summary
        log = None
        try:
            rooms = prepare(config, folder, screen, group=group)
            log = _log(config, folder, group)
            _train(config, folder, rooms, log, screen, stop, group)
            for sae_config in config.sae:
                target = folder / "dictionaries" / sae_config.name
                _finish_dictionary(config, target, sae_config, rooms, log, screen, group)
                if stop():  # asked for where a library held the exception back
                    raise Interrupted("stopped; what was finished is kept. The same command goes on from there.")
            return group.from_first(lambda: _end(config, folder, rooms, log, screen, group))
        finally:
            if log is not None:
                log.close()
            if group.first:
                write_json(folder / "seconds.json", screen.seconds)


def _begin(config: TrainConfig, folder: Path, screen: Screen, held: ExitStack) -> dict[str, Any] | None:
    """Takes the run folder and what it knows; the summary of a run that is complete."""
    held.enter_context(owned(folder))
    _check_same_config(config, folder)
    summary_file, seconds_file = folder / "summary.json", folder / "seconds.json"
    screen.seconds = json.loads(seconds_file.read_text()) if seconds_file.exists() else {}
    if not summary_file.exists():
        return None
    screen.say(f"{folder}: this run is complete already. Use another `name`, or remove the folder.")
    return json.loads(summary_file.read_text())


def _writes(config: TrainConfig, group: Group) -> bool:
    """Whether this process has metrics that the first one does not have, or is the first."""
    return group.first or config.train.parallel == "dictionaries"


def _log(config: TrainConfig, folder: Path, group: Group) -> MetricsLog:
    """Where this process logs; only with dictionaries of its own does another than the first send anything."""
    part = "" if group.first else f"-{group.rank}"
    return MetricsLog(
        config.log if _writes(config, group) else LogConfig(), folder, config.name, config.model_dump(mode="json"), part
    )


def _end(
    config: TrainConfig, folder: Path, rooms: Rooms, log: MetricsLog, screen: Screen, group: Group
) -> dict[str, Any]:
    """Writes the summary and removes what only a resumed run would need."""
    summary = _summarise(config, folder, rooms, screen, group)
    metrics = {name: json.loads((path / "metrics.json").read_text()) for name, path in _folders(config).items()}
    log.finish(metrics, {f"{n}/curves": p / "curves.png" for n, p in _folders(config).items()})
    for leftover in ("checkpoints", "activations/held_out", "codes"):
        shutil.rmtree(folder / leftover, ignore_errors=True)
    for kept in (folder / "activations").glob("contexts-*"):  # the statistics stay, for `sae eval`
        kept.unlink()
    write_json(folder / "summary.json", summary)
    return summary


def _folders(config: TrainConfig) -> dict[str, Path]:
    return {sae.name: config.folder / "dictionaries" / sae.name for sae in config.sae}


class _Stop:
    """Turns Ctrl-C and SIGTERM into `Interrupted`: at once, or after the update in hand while training is `patient`."""

    def __init__(self) -> None:
        self.asked = self.patient = False

    def __call__(self) -> bool:
        return self.asked

    def _handle(self, number: int, _frame: Any) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)  # a second one stops without ceremony
        if not self.patient:
            raise Interrupted("stopped; what was finished is kept. The same command goes on from there.")

    @contextmanager
    def listening(self) -> Iterator[_Stop]:
        """Listens for the time of the block; off the main thread there is nothing to listen to."""
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            before = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        except Exception as error:
            if self.asked and not isinstance(error, Interrupted):  # a library turned the stop into an error of its own
                raise Interrupted("stopped; what was finished is kept. The same command goes on from there.") from error
            raise
        finally:
            for number, old in before.items():
                signal.signal(number, old)


def _check_same_config(config: TrainConfig, folder: Path) -> None:
    """Writes config.yaml, or compares with the one the folder was begun with."""
    path = folder / "config.yaml"
    new = config.model_dump(mode="json")
    if not path.exists():
        write_bytes(path, yaml.safe_dump(new, sort_keys=False).encode())
        return
    old = yaml.safe_load(path.read_text())
    differing = sorted(key for key in {*new, *old} if new.get(key) != old.get(key) and key not in ("log", "runs_dir"))
    if differing:
        raise ConfigError(
            f"{folder}: begun with another config; these sections differ: {', '.join(differing)}. "
            "Use another `name`, or remove the folder."
        )


def _train(
    config: TrainConfig, folder: Path, rooms: Rooms, log: MetricsLog, screen: Screen, stop: _Stop, group: Group
) -> None:
    """Room 5: trains what is not published yet and publishes it."""
    if group.from_first(lambda: all((path / "card.json").exists() for path in _folders(config).values())):
        return
    writes = _writes(config, group)
    selection = rooms.dtype if config.train.dtype == "auto" else getattr(torch, config.train.dtype)

    def write(name: str, line: dict[str, Any], trainer: SaeTrainer) -> None:
        if not writes:
            return
        histograms = {}
        if log.wants_histograms:
            histograms["tokens_since_fired"] = trainer.sae.tokens_since_fired.cpu().numpy()
            histograms["encoder_bias"] = trainer.sae.b_enc.detach().cpu().numpy()
        log.line(name, line, histograms)

    try:
        with screen.stage("train", config.train.tokens * config.shuffle.reuse) as stage:
            training = TrainingRun(
                config.train,
                config.shuffle,
                config.sae,
                rooms.train,
                config.seed,
                selection,
                folder / "checkpoints",
                write,
            )
            done = training.resume(screen.say)
            if done:
                screen.say(f"resuming after {done:,} of {training.total:,} activations")
            for trainer in training.trainers if writes else ():
                truncate_log(log.path(trainer.config.name), trainer.tokens_seen)
            harvested = 0

            def tick(n_tokens: int) -> None:
                nonlocal harvested
                harvested += n_tokens * group.size
                stage.update(stage.done, harvested=harvested)
                if stop() and group.size == 1:  # several agree on it between updates
                    training.stop()

            rooms.train.harvester.tick = tick
            stage.update(done, training.total)
            stop.patient = True
            training.run(
                lambda seen, line: stage.update(seen, training.total, **{k: line[k] for k in ("fvu", "l0", "dead")}),
                stop,
            )
            if any(group.values(stop())):
                training.stop()
    finally:
        stop.patient = False
        rooms.train.harvester.tick = lambda n_tokens: None
        _separate_accounts(rooms.train, screen)
    for trainer in training.trainers:
        _publish(config, folder, rooms, trainer)
    group.wait()


def _separate_accounts(activations: Activations, screen: Screen) -> None:
    """Harvest and cache are at work inside the loop, when a segment is first asked for; they have accounts of their own."""
    apart = {"harvest": activations.harvest_s}
    if activations.cache is not None:
        apart["cache"] = activations.cache.traffic.seconds
    for name, seconds in apart.items():
        screen.seconds["train"] -= seconds
        screen.seconds[name] = screen.seconds.get(name, 0.0) + seconds


def _publish(config: TrainConfig, folder: Path, rooms: Rooms, trainer: SaeTrainer) -> None:
    lm, statistics, dead = rooms.lm, trainer.statistics, trainer.dead()
    if trainer.fused:
        trainer.fused.complete()
    facts = {
        "run": config.name,
        "config_sha256": config.sha256(),
        "seed": config.seed,
        "model": {
            "name": lm.name,
            "sha256": lm.sha256,
            "licence": lm.licence,
            "dtype": str(rooms.dtype).removeprefix("torch."),
            "n_layers": lm.n_layers,
            "prepend_bos": lm.prepend_bos,
        },
        "tokenizer": {"sha256": language_model.tokenizer_sha256(lm.tokenizer), "size": len(lm.tokenizer)},
        "corpus": tokens.manifest(config.text, folder / "tokens"),
        "text": {"ctx_len": config.text.ctx_len, "packing": config.text.packing},
        "filters": {
            "drop_positions": config.harvest.drop_positions,
            "special_ids_dropped": lm.special_ids if config.harvest.drop_special else [],
            "input_scale_folded": statistics.scale,
            "max_norm": statistics.max_norm,
            "median_norm": statistics.median_norm,
            "positions_read": rooms.train.contexts.n_contexts * config.text.ctx_len,
            "positions_kept": trainer.tokens_seen // config.shuffle.reuse,
        },
        "training": {
            "activations_seen": trainer.tokens_seen,
            "reuse": config.shuffle.reuse,
            "optimiser": config.train.model_dump(mode="json"),
            "dead_at_end": dead,
        },
    }
    one_scale = trainer.config.reads == trainer.config.writes and len(trainer.config.reads) == 1
    trainer.sae.fold_scale(*((statistics.scale,) if one_scale else (trainer.scale_in, trainer.scale_out)))
    target = folder / "dictionaries" / trainer.config.name
    if trainer.spread:
        tensors = {name: trainer.piece(name, value) for name, value in trainer.sae.state_dict().items()}
        dictionary.publish_shards(target, trainer.sae, trainer.config, tensors, facts, trainer.group)
    elif trainer.group.first:
        dictionary.publish(target, trainer.sae, facts)


def _finish_dictionary(
    config: TrainConfig, folder: Path, sae_config: ArchitectureConfig, rooms: Rooms, log: MetricsLog, screen: Screen,
    group: Group,
) -> None:  # fmt: skip
    """Rooms 5 (evaluation) to 7 for one dictionary; each step is skipped where its result is there.

    The processes of a group encode together for the index and explain and score together; the rest is the first one's work.
    """
    sae = dictionary.load(folder).to(rooms.lm.device)
    group.from_first(lambda: _evaluate(config, folder, sae, rooms, log, screen))
    if not config.index.build:
        return
    if not group.from_first(lambda: "contexts" in read_pointer(folder / "store")):
        weights = dictionary.read_card(folder)["weights_sha256"]
        facts = {"weights_sha256": weights, "hook": str(sae_config.hook)}
        scratch = config.folder / "codes" / sae_config.name
        with screen.stage("index", config.train.tokens) as stage:
            index(
                sae, rooms.train, rooms.lm, config.index, config.seed, folder, scratch, facts, stage.update, screen.say
            )
    _explain(config, folder, sae, rooms, screen, group)


def _evaluate(
    config: TrainConfig, folder: Path, sae: SparseAutoencoder, rooms: Rooms, log: MetricsLog, screen: Screen
) -> None:
    if (folder / "report.md").exists():
        return
    title = f"{config.name} / {sae.config.name}"
    drop(folder / "store", ("contexts", "explanations"))
    lines = log.read(sae.config.name)
    (folder / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plots.curves(lines, title, folder / "curves.png")
    card = dictionary.read_card(folder)
    write_json(folder / "metrics.json", {"dead": card["training"]["dead_at_end"], "d_sae": sae.d_sae})
    with screen.stage("evaluate", 1, "contexts") as stage:
        subject = subject_of(sae, rooms.held_out, config.evaluate, folder, config.seed, stage.update)
        evaluate(subject, config.evaluate.measures, title)


def _explain(
    config: TrainConfig, folder: Path, sae: SparseAutoencoder, rooms: Rooms, screen: Screen, group: Group
) -> None:
    def explained() -> bool:
        return "explanations" in read_pointer(folder / "store") and (folder / "labels.json").exists()

    if not group.from_first(explained):
        with screen.stage("label", sae.d_sae, "features") as stage:
            running = lru_cache(partial(_running, config, sae, rooms))
            summary = interpret(folder, config.interpret, stage.update, running, several=group)
        if group.first:
            write_json(folder / "labels.json", summary)
    group.from_first(lambda: _export_contexts(folder, screen))


def _export_contexts(folder: Path, screen: Screen) -> None:
    if not (folder / "contexts.parquet").exists():
        with screen.stage("export", 1, "dictionary"):
            store = Store(folder / "store")
            parquet.write_contexts(folder / "contexts.parquet", store)
            store.close()


def _running(config: TrainConfig, sae: SparseAutoencoder, rooms: Rooms) -> Running:
    """The dictionary with a harvester of its own activations: that of training may also harvest gradients."""
    return Running(sae, Harvester(rooms.lm, sae.config.activations, config.harvest, config.text.packing))


def _summarise(config: TrainConfig, folder: Path, rooms: Rooms, screen: Screen, group: Group) -> dict[str, Any]:
    seconds = dict(screen.seconds)
    found: dict[str, Any] = {"run": config.name, "folder": str(folder), "dictionaries": {}}
    for name, path in _folders(config).items():
        found["dictionaries"][name] = {
            "folder": str(path),
            "metrics": json.loads((path / "metrics.json").read_text()),
            "labels": json.loads((path / "labels.json").read_text()) if config.index.build else None,
        }
    activations = sum(dictionary.read_card(path)["training"]["activations_seen"] for path in _folders(config).values())
    measured = efficiency.rates(config, rooms, seconds, activations, group.size)
    found["rates"] = {stage: rate._asdict() for stage, rate in measured.items()}
    if rooms.train.cache is not None:
        found["cache"] = {"read": rooms.train.cache.traffic.read, "written": rooms.train.cache.traffic.written}
    found["peak_bytes"] = efficiency.peak_memory(rooms.lm)
    found["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
    found["seconds_total"] = round(sum(seconds.values()), 1)
    return found
