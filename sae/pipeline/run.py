"""A whole run, from a config to published, labelled dictionaries: its stages in order.

Every stage but `Prepare` leaves its result on disk, so the same command resumes where it stopped. `sae eval` and
`sae interpret` perform parts of the same list.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from sae.errors import ConfigError
from sae.foundation.distributed import ALONE, Processes
from sae.foundation.files import read_json, write_bytes, write_json
from sae.foundation.screen import Screen
from sae.foundation.stop import StopRequest
from sae.pipeline.config import RunConfig, config_of_run
from sae.pipeline.run_log import LogConfig, MetricsLog
from sae.pipeline.stage import Run, Stage, owned_by_first, perform
from sae.pipeline.stages.adopt import Adopt
from sae.pipeline.stages.check import Check
from sae.pipeline.stages.evaluate import Evaluate
from sae.pipeline.stages.first_look import FirstLabels, FirstLook
from sae.pipeline.stages.index import Index
from sae.pipeline.stages.label import Label
from sae.pipeline.stages.prepare import Prepare
from sae.pipeline.stages.summarise import Summarise
from sae.pipeline.stages.train import Train
from sae.pipeline.stages.write_parquet import WriteParquet
from sae.pipeline.summary import RunSummary

SECONDS = "seconds.json"
DICTIONARY_STAGES = (Evaluate, Index, Label, WriteParquet)  # controls keep as many latents as the evaluation says
OPENED_STAGES = (Index, Label, Evaluate, WriteParquet)  # or as the check says: what people look at comes first


def stages_of(config: RunConfig) -> list[Stage]:
    """The table of contents of a run."""
    stages: list[Stage] = [
        Prepare(),  # the model, the tokens, and activations that are harvested when a later stage asks for them
    ]
    if config.opened is None:
        stages.append(Train())  # all dictionaries of the config on one stream, then published
    for folder in config.dictionary_folders.values():
        if config.opened is not None:
            stages += [Adopt(folder), Check(folder), FirstLook(folder, config.opened.first_tokens), FirstLabels(folder)]
        others = DICTIONARY_STAGES if config.opened is None else OPENED_STAGES
        stages += [stage(folder) for stage in others if stage is Evaluate or config.index.build]
    return [*stages, Summarise()]


def run(
    config: RunConfig, screen: Screen, processes: Processes = ALONE, *, after: Callable[[Stage], None] | None = None
) -> RunSummary:
    """Performs all stages and returns the summary; the processes share the run folder and the work.

    `after` is called in the first process after every stage, also one that was done before.
    """
    folder = config.folder
    with owned_by_first(folder, processes), StopRequest().listening() as stop:
        summary = processes.on_first(lambda: _begin(config, screen))
        if summary is not None:
            return summary

        work = Run(folder, screen, config, processes, stop=stop, after=after)
        stages = stages_of(config)
        with _timed(folder, screen, processes):
            perform(stages[:1], work)
            with closing(_metrics_log(config, processes)) as work.log:
                perform(stages[1:], work)
        return processes.on_first(lambda: RunSummary.read(folder))


@contextmanager
def _timed(folder: Path, screen: Screen, processes: Processes) -> Iterator[None]:
    """Keeps the seconds that the stages of the block took, also of a run that stops."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # the error that is to be told is that of the stage
            _write_seconds(folder, screen, processes)
        raise
    _write_seconds(folder, screen, processes)


def _write_seconds(folder: Path, screen: Screen, processes: Processes) -> None:
    if processes.is_first:
        write_json(folder / SECONDS, screen.seconds)


def _begin(config: RunConfig, screen: Screen) -> RunSummary | None:
    """Checks that the folder belongs to this config and reads its timings; returns the summary of a complete run."""
    folder = config.folder
    _check_same_config(config, folder)
    screen.seconds = read_json(folder / SECONDS) if (folder / SECONDS).exists() else {}
    if not Summarise.path(folder).exists():
        return None
    screen.say(f"{folder}: this run is complete already. Use another `name`, or remove the folder.")
    return RunSummary.read(folder)


def _check_same_config(config: RunConfig, folder: Path) -> None:
    """Writes config.yaml, or compares the config with the one that the folder was begun with.

    A run may be moved, and model and text with it: paths are the same if they are, seen from anywhere or from runs_dir.
    """
    path, differing = folder / "config.yaml", []
    if path.exists():
        begun_with = config_of_run(folder, "")
        pairs = [
            (_compared(view(config)), _compared(view(begun_with))) for view in (RunConfig.absolute, _seen_from_runs)
        ]
        differing = sorted(key for key in pairs[0][0] if all(new[key] != old[key] for new, old in pairs))
    if differing:
        raise ConfigError(
            f"{folder}: begun with another config; these sections differ: {', '.join(differing)}. "
            "Use another `name`, or remove the folder."
        )

    content = yaml.safe_dump(config.absolute().model_dump(mode="json"), sort_keys=False).encode()
    if not path.exists() or path.read_bytes() != content:
        write_bytes(path, content)


def _compared(config: RunConfig) -> dict[str, Any]:
    """The settings that may not change between two starts of one run."""
    return config.model_dump(mode="json", exclude={"log", "runs_dir"})


def _seen_from_runs(config: RunConfig) -> RunConfig:
    config = config.absolute()
    return config.with_paths(lambda path: Path(os.path.relpath(path, config.runs_dir)))


def _metrics_log(config: RunConfig, processes: Processes) -> MetricsLog:
    """The log of this process. A process other than the first logs only if it has dictionaries of its own."""
    logs = processes.is_first or config.train.parallel == "dictionaries"
    part = "" if processes.is_first else f"-{processes.rank}"
    settings = config.log if logs else LogConfig()
    return MetricsLog(settings, config.folder, config.name, config.model_dump(mode="json"), part=part)
