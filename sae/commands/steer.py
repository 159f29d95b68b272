"""`sae steer DICTIONARY`: how well features and differences of means detect concepts, and steer towards them."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, final

from sae.commands.command import Command

if TYPE_CHECKING:
    from feature_store.results.findings import Finding
    from sae.apply.steering.report import SteerSettings


@final
class Steer(Command):
    """Steers by the best feature of every concept, the difference of means and a control, at equal disturbance."""

    name = "steer"
    help = "how well features detect concepts of your texts, and steer towards them, beside the difference of means"
    order = 48
    epilog = (
        'A line of --texts is an object with "text", "label" and perhaps "group": texts of a group are in one half. Half choose '
        "directions, the others test them. Without it, sentences about six concepts are made. The result is "
        "findings/NAME/finding.json in the dictionary's folder. docs/steer.md has the equations."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The dictionary, the texts, and how much is written."""
        parser.add_argument("dictionary", type=Path, help="dictionary folder; factors of `sae factor` are one, too")
        parser.add_argument(
            "--texts", type=Path, metavar="FILE", help="texts with classes (.jsonl; default: six concepts)"
        )
        parser.add_argument("--kl", type=float, default=0.25, help="disturbance in nats (default: 0.25)")
        parser.add_argument(
            "--samples", type=int, default=8, help="texts written after each of four prompts (default: 8)"
        )
        parser.add_argument("--tokens", type=int, default=24, help="tokens of each (default: 24)")
        parser.add_argument("--most", type=int, default=2000, help="texts to read (default: 2000)")
        parser.add_argument("--name", default="steer", help="name of the finding (default: steer)")
        parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn (default: 0)")
        parser.add_argument("--run", type=Path, help="run whose model to use, for a dictionary outside of one")

    def run(self, arguments: Namespace) -> int:
        """Steers and prints what came out."""
        from sae.apply.finding import as_text
        from sae.apply.steering.report import SteerSettings

        settings = SteerSettings(
            arguments.texts, arguments.kl, arguments.samples, arguments.tokens, most=arguments.most, seed=arguments.seed
        )
        finding = steer_towards(arguments.dictionary, settings, name=arguments.name, run_folder=arguments.run)
        print(as_text(finding, arguments.dictionary))
        return 0


def steer_towards(folder: Path, settings: SteerSettings, *, name: str, run_folder: Path | None) -> Finding:
    """Steers and writes the finding into the dictionary's folder; returns it."""
    from sae.apply.steering.report import steer_finding
    from sae.pipeline.reading import reading_for

    settings.check()
    with reading_for(name, folder, run_folder) as reading:
        return steer_finding(reading.folder, name, reading.reader, settings, screen=reading.screen)
