"""`sae interpret`: labels and scores of dictionaries whose run is over."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from sae.commands.command import Command, plugin_names
from sae.commands.judge_arguments import add_judge_arguments, judge_settings

if TYPE_CHECKING:
    from feature_store.dictionary_files import LabelSummary
    from sae.interpret.interpret import InterpretConfig

EXPLAINERS, SCORERS = "sae.interpret.explainers", "sae.interpret.scorers"


@final
class Interpret(Command):
    """Performs the stage `label` on finished dictionaries."""

    name = "interpret"
    help = "explain and score features again (contexts are kept)"
    order = 20

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The dictionaries, what to run, and the judge."""
        parser.add_argument("path", type=Path, help="a run folder (all its dictionaries) or one dictionary folder")
        parser.add_argument(
            "--features", metavar="A-B", help="only these features, such as 0-999; the others keep their labels"
        )
        parser.add_argument(
            "--explainers",
            help=f"comma-separated: {', '.join(plugin_names(EXPLAINERS))} (default: all that need no judge)",
        )
        parser.add_argument(
            "--scorers",
            help=f"comma-separated: {', '.join(plugin_names(SCORERS))} (default: those that need the store only)",
        )
        parser.add_argument(
            "--people",
            type=Path,
            metavar="FILE",
            help="score people's labels as well: the file of `sae serve --people`",
        )
        add_judge_arguments(parser)

    def run(self, arguments: Namespace) -> int:
        """Labels every dictionary and prints the figures."""
        for name, summary in label_dictionaries(arguments.path, arguments.features, _settings(arguments)):
            share = summary.share_beating_control
            beside = "" if share is None else f", {share:.1%} above what 5 % of random directions' labels exceed"
            print(f"{name}: labelled {summary.features_labelled} of {summary.features_alive} live features{beside}")
            if cost := summary.judge:
                print(
                    f"  judge: {cost.asked} prompts asked, {cost.cached} answered before, {cost.failed} unreadable; "
                    f"{cost.prompt_tokens:,} tokens read, {cost.answer_tokens:,} written"
                    + ("" if cost.cost is None else f"; cost {cost.cost:.2f}")
                )

        return 0


def _settings(arguments: Namespace) -> InterpretConfig:
    return settings_of(arguments.explainers, arguments.scorers, judge_settings(arguments), arguments.people)


def settings_of(
    explainers: str | None, scorers: str | None, judge: dict[str, Any] | None, people: Path | None = None
) -> InterpretConfig:
    """The settings that the command line gives; raises `ConfigError`."""
    from pydantic import ValidationError

    from sae.errors import ConfigError
    from sae.interpret.interpret import InterpretConfig
    from sae.interpret.judging.judge import JudgeConfig

    lists = {"explainers": explainers, "scorers": scorers}
    names: dict[str, Any] = {key: tuple(text.split(",")) for key, text in lists.items() if text is not None}

    try:
        return InterpretConfig(**names, judge=JudgeConfig(**judge) if judge else None, people=people)
    except ValidationError as error:
        problem = error.errors()[0]
        option = "".join(f"--{part}: " for part in problem["loc"][:1])
        raise ConfigError(f"{option}{problem['msg'].removeprefix('Value error, ')}") from None


def label_dictionaries(path: Path, features: str | None, settings: InterpretConfig) -> list[tuple[str, LabelSummary]]:
    """Explains and scores one dictionary or all of a run; returns (name, summary) of each."""
    from feature_store.dictionary_files import LabelSummary
    from sae.foundation.files import dictionaries_in
    from sae.foundation.screen import Screen
    from sae.foundation.stop import StopRequest
    from sae.pipeline.stage import Run, perform
    from sae.pipeline.stages.label import Label

    feature_range = _feature_range(features)
    summaries = []

    for folder in dictionaries_in(path.resolve()):
        with StopRequest().listening() as stop:
            perform([Label(folder, settings, feature_range)], Run(folder.parent.parent, Screen(), stop=stop))
        summaries.append((folder.name, LabelSummary.read(folder)))

    return summaries


def _feature_range(text: str | None) -> range | None:
    from sae.errors import ConfigError

    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not match or (match[2] and int(match[2]) < int(match[1])):
        raise ConfigError(f"--features: {text!r} is not a range. Write one feature, such as 7, or first-last: 0-999")
    return range(int(match[1]), int(match[2] or match[1]) + 1)
