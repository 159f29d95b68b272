"""`sae eval`: measures dictionaries whose run is over, on the run's own held-out text or on any other."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, NamedTuple, final

from sae.commands.command import Command, plugin_names

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
        parser.add_argument(
            "--text",
            action="append",
            default=[],
            metavar="FILES",
            help="measure fvu, l0 and loss on this text instead: installed-docs, or a file, folder or glob of .jsonl, .csv, "
            ".parquet (column text) or plain text; NAME=FILES names it; repeat for several",
        )

    def run(self, arguments: Namespace) -> int:
        """Measures every dictionary and prints where its report is."""
        if arguments.text:
            return _measure_on_texts(arguments)
        measures = tuple(arguments.measures.split(",")) if arguments.measures else None
        for folder in evaluate_dictionaries(arguments.path, arguments.run, measures, tuple(arguments.against)):
            print(f"{folder.name}: {folder / 'report.md'}")
        return 0


def _measure_on_texts(arguments: Namespace) -> int:
    from sae.errors import ConfigError

    if arguments.measures or arguments.against:
        raise ConfigError("--text: measures fvu, l0 and loss alone. Leave out --measures and --against.")
    for folder, text, figures in evaluate_on_texts(arguments.path, arguments.run, tuple(arguments.text)):
        loss = f", CE increase {figures['ce_increase']:.3f} nats" if "ce_increase" in figures else ""
        print(
            f"{folder.name} on {text}: fvu {figures['fvu']:.4f} (typical positions {figures['fvu_typical']:.4f}){loss}"
        )

    return 0


def evaluate_dictionaries(
    path: Path, run_folder: Path | None, measures: tuple[str, ...] | None, against: tuple[Path, ...]
) -> list[Path]:
    """Measures one dictionary or all of a run; returns their folders.

    The model, the held-out text and the filters are those of the run that the dictionary lies in, or of `run_folder`.
    """
    from sae.errors import ConfigError
    from sae.evaluation.evaluate import known_measures
    from sae.pipeline.borrowed import borrowed_run, prepared
    from sae.pipeline.stage import perform
    from sae.pipeline.stages.evaluate import Evaluate as EvaluateStage

    run, folders = borrowed_run(path, run_folder)
    try:
        names = known_measures(measures) if measures else run.config.evaluate.measures
    except ValueError as error:
        raise ConfigError(f"--measures: {error}") from None

    with prepared(run, folders) as (prepare, _):
        perform([prepare, *(EvaluateStage(folder, names, against) for folder in folders)], run)

    return folders


class TextFigures(NamedTuple):
    """Figures of a dictionary on one text."""

    dictionary: Path
    text: str
    figures: dict[str, Any]


def evaluate_on_texts(path: Path, run_folder: Path | None, texts: tuple[str, ...]) -> list[TextFigures]:
    """Measures dictionaries on other texts, each "files" or "name=files"; see `sae eval --text`."""
    from sae.pipeline.borrowed import borrowed_run, prepared
    from sae.pipeline.stage import perform
    from sae.pipeline.stages.evaluate_on_text import EvaluateOnText
    from sae.text.corpus import described, source_named

    run, folders = borrowed_run(path, run_folder)
    with prepared(run, folders) as (prepare, scratch):
        stages = []
        for number, text in enumerate(texts):
            name, _, files = text.rpartition("=")
            source = source_named(files)
            name = name or described(source)
            stages += [EvaluateOnText(folder, source, name, scratch=scratch / f"text-{number}") for folder in folders]
        perform([prepare, *stages], run)

    return [TextFigures(stage.dictionary, stage.name, stage.figures) for stage in stages]
