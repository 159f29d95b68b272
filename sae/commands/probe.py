"""`sae probe DICTIONARY`: which features tell true statements from false ones, or any classes of texts, and when they do not know."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

from sae.commands.command import Command

if TYPE_CHECKING:
    from feature_store.results.findings import Finding
    from sae.apply.probes.report import ProbeSettings

CITIES = Path()  # stands for questions that are made


@final
class Probe(Command):
    """Fits probes on a few features that abstain where they do not know, beside probes on activations and words."""

    name = "probe"
    help = "which features tell true from false, or any classes of texts, and when they do not know"
    order = 48
    epilog = (
        'A line of --texts is an object with "text", "label" (true, false, neither; or any classes) and perhaps "group": texts of one '
        "group, such as statements about one city, are never both learned from and tested on. Without it statements about "
        "cities are made. With --questions the texts are the model's own answers, right or wrong, and it is tried whether pushing it "
        "along what tells them makes more of them right. The result is findings/NAME/finding.json in the dictionary's folder. "
        "docs/probe.md has the equations."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The dictionary, the texts, and what a probe may do."""
        parser.add_argument("dictionary", type=Path, help="dictionary folder")
        parser.add_argument(
            "--texts", type=Path, metavar="FILE", help="texts with classes (.jsonl; default: about cities)"
        )
        parser.add_argument(
            "--questions", type=Path, nargs="?", const=CITIES, metavar="FILE",
            help='the model\'s own answers instead: lines with "prompt" and "answer" (.jsonl; without FILE: about cities)',
        )  # fmt: skip
        parser.add_argument(
            "--also", type=Path, nargs="+", default=[], metavar="DICTIONARY", help="further dictionaries of the model"
        )
        parser.add_argument("--k", type=int, default=16, help="features that the probe reads (default: 16)")
        parser.add_argument(
            "--at",
            choices=("last", "any"),
            default="last",
            help="at the last token of a text, or anywhere (default: last)",
        )
        parser.add_argument(
            "--alpha", type=float, default=0.1, help="share of texts whose class may be missed (default: 0.1)"
        )
        parser.add_argument(
            "--positions", type=int, default=3, help="last tokens to probe in every layer (default: 3; 0: none)"
        )
        parser.add_argument("--most", type=int, default=2000, help="texts to read (default: 2000)")
        parser.add_argument("--name", default="probe", help="name of the finding (default: probe)")
        parser.add_argument("--seed", type=int, default=0, help="seed of the parts and of what is drawn (default: 0)")
        parser.add_argument("--run", type=Path, help="run whose model to use, for an imported dictionary")

    def run(self, arguments: Namespace) -> int:
        """Probes and prints what it found."""
        from sae.apply.finding import as_text
        from sae.apply.probes.report import ProbeSettings

        settings = ProbeSettings(
            arguments.texts, arguments.k, arguments.at, arguments.alpha, positions=arguments.positions,
            most=arguments.most, seed=arguments.seed, asks=arguments.questions is not None,
            questions=None if arguments.questions == CITIES else arguments.questions,
        )  # fmt: skip
        finding = probe_texts(
            arguments.dictionary, settings, also=arguments.also, name=arguments.name, run_folder=arguments.run
        )
        print(as_text(finding, arguments.dictionary))
        return 0


def probe_texts(
    folder: Path, settings: ProbeSettings, *, also: Sequence[Path] = (), name: str, run_folder: Path | None
) -> Finding:
    """Probes and writes the finding into the dictionary's folder; returns it."""
    from sae.apply.probes.report import probe_finding
    from sae.pipeline.reading import further_reader, named_folders, reading_for

    settings.check()
    folders = named_folders(also, "--also")
    with reading_for(name, folder, run_folder) as reading:
        others = {other: further_reader(reading.reader, path) for other, path in folders.items()}
        return probe_finding(reading.folder, name, reading.reader, settings, others=others, screen=reading.screen)
