"""`sae risk DICTIONARY`: which latents foretell the model's loss on texts, or any score of them."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, final

from sae.commands.command import Command

if TYPE_CHECKING:
    from feature_store.results.findings import Finding
    from sae.apply.risk.report import RiskSettings


@final
class Risk(Command):
    """Foretells a score per text from its latents, with held-out texts and a null, and tries removing them."""

    name = "risk"
    help = "which features foretell the loss, or a score of yours, of texts"
    order = 43
    epilog = (
        "--texts are files with one text per line, or .jsonl, .csv or .parquet with a column text: the score is then the model's "
        'mean loss on each. --scores is a .jsonl file with "text" and "score", for example how unfaithful a summary of the '
        "text was. The result is findings/NAME/finding.json in the dictionary's folder. docs/risk.md has the equations."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The dictionary, the texts, and how many."""
        parser.add_argument("dictionary", type=Path, help="dictionary folder")
        parser.add_argument("--texts", metavar="FILES", help="texts whose loss is foretold")
        parser.add_argument("--scores", type=Path, metavar="FILE", help="instead: texts with a score each")
        parser.add_argument("--name", default="risk", help="name of the finding (default: risk)")
        parser.add_argument("--most", type=int, default=400, help="texts to read (default: 400)")
        parser.add_argument(
            "--remove", type=int, default=10, help="latents to remove, to see what they do (default: 10; 0: none)"
        )
        parser.add_argument("--seed", type=int, default=0, help="seed of folds and permutations (default: 0)")
        parser.add_argument("--run", type=Path, help="run whose model to use, for an imported dictionary")

    def run(self, arguments: Namespace) -> int:
        """Foretells and prints how well."""
        from sae.apply.finding import as_text
        from sae.apply.risk.report import RiskSettings

        settings = RiskSettings(
            arguments.texts, arguments.scores, arguments.most, remove=arguments.remove, seed=arguments.seed
        )
        finding = foretell_texts(arguments.dictionary, settings, name=arguments.name, run_folder=arguments.run)
        print(as_text(finding, arguments.dictionary))
        return 0


def foretell_texts(folder: Path, settings: RiskSettings, *, name: str, run_folder: Path | None) -> Finding:
    """Foretells scores of texts and writes the finding into the dictionary's folder; returns it."""
    from sae.apply.risk.report import risk_finding
    from sae.pipeline.reading import reading_for

    settings.check()
    with reading_for(name, folder, run_folder) as reading:
        return risk_finding(reading.folder, name, reading.reader, settings, screen=reading.screen)
