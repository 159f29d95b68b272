"""`sae eval`: measures dictionaries whose run is over, on the run's own held-out text."""

from __future__ import annotations

import shutil
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import final

from sae.commands.command import Command, plugin_names

SCRATCH = ".evaluating"  # in the run's folder, so that the next evaluation finds what a killed one left
MEASURES_PACKAGE = "sae.evaluation.measures"


@final
class Evaluate(Command):
    """Performs the stage `evaluate` on finished dictionaries."""

    name = "eval"
    help = "measure dictionaries on held-out text; writes metrics.json and report.md"
    order = 30

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The dictionaries, the measures, and what to compare with."""
        parser.add_argument("path", type=Path, help="a run folder (all its dictionaries) or one dictionary folder")
        parser.add_argument(
            "--run", type=Path, help="run whose model and held-out text to use, for an imported dictionary"
        )
        parser.add_argument(
            "--measures",
            help=f"comma-separated: {', '.join(plugin_names(MEASURES_PACKAGE))} (default: those of the run's config)",
        )
        parser.add_argument(
            "--against",
            type=Path,
            action="append",
            default=[],
            metavar="DICTIONARY",
            help="dictionary folder to compare with (stability); repeat for several",
        )

    def run(self, arguments: Namespace) -> int:
        """Measures every dictionary and prints where its report is."""
        measures = tuple(arguments.measures.split(",")) if arguments.measures else None
        for folder in evaluate_dictionaries(arguments.path, arguments.run, measures, tuple(arguments.against)):
            print(f"{folder.name}: {folder / 'report.md'}")
        return 0


def evaluate_dictionaries(
    path: Path, run_folder: Path | None, measures: tuple[str, ...] | None, against: tuple[Path, ...]
) -> list[Path]:
    """Measures one dictionary or all of a run; returns their folders.

    The model, the held-out text and the filters are those of the run that the dictionary lies in, or of `run_folder`.
    """
    from sae.errors import ConfigError
    from sae.evaluation.evaluate import known_measures
    from sae.foundation.files import dictionaries_in, owned
    from sae.foundation.screen import Screen
    from sae.foundation.stop import StopRequest
    from sae.pipeline.stage import Run, perform
    from sae.pipeline.stages.evaluate import Evaluate as EvaluateStage
    from sae.pipeline.stages.prepare import Prepare
    from sae.publish import dictionary

    folders = dictionaries_in(path.resolve())
    run = Run((run_folder or folders[0].parent.parent).resolve(), Screen())
    scratch = run.folder / SCRATCH

    try:
        names = known_measures(measures) if measures else run.config.evaluate.measures
    except ValueError as error:
        raise ConfigError(f"--measures: {error}") from None

    configs = [dictionary.load(folder).config for folder in folders]
    channels = tuple(dict.fromkeys(channel for config in configs for channel in config.channels))

    with owned(run.folder), StopRequest().listening() as run.stop:
        shutil.rmtree(scratch, ignore_errors=True)  # of an evaluation that was killed
        scratch.mkdir()
        try:
            for statistics in (run.folder / "activations").glob("*.json"):  # the filters of training, not new ones
                shutil.copy(statistics, scratch)
            stages = [EvaluateStage(folder, names, against) for folder in folders]
            perform([Prepare(channels, scratch), *stages], run)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    return folders
