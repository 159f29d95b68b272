"""`sae contrast DICTIONARY A B`: which features tell two sets of texts apart, and what the model does without them."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, final

from sae.commands.command import Command

if TYPE_CHECKING:
    from feature_store.results.findings import Finding
    from sae.apply.contrast.report import ContrastSettings


@final
class ContrastCommand(Command):
    """Contrasts two sets of texts, and keeps the result for the explorer."""

    name = "contrast"
    help = "which features tell two sets of your own texts apart"
    order = 41
    epilog = (
        "A and B are files with one text per line, or .jsonl, .csv or .parquet with a column text. A feature counts for a text "
        "if it fires at any of its tokens (--at last: at the last one). The result is findings/NAME/finding.json in the "
        "dictionary's folder, which the explorer shows. docs/contrast.md has the equations."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The dictionary, both sets, and what to do with the features that differ."""
        parser.add_argument("dictionary", type=Path, help="dictionary folder")
        parser.add_argument("a", help="texts of the first set")
        parser.add_argument("b", help="texts of the second set")
        parser.add_argument("--name", default="contrast", help="name of the finding (default: contrast)")
        parser.add_argument("--at", choices=("any", "last"), default="any", help="tokens that count (default: any)")
        parser.add_argument("--texts", type=int, default=200, help="texts read of each set (default: 200)")
        parser.add_argument("--q", type=float, default=0.05, help="false discovery rate (default: 0.05)")
        parser.add_argument(
            "--ablate", type=int, default=10, help="features of A to remove, to see what they do (default: 10; 0: none)"
        )
        parser.add_argument(
            "--penalty", type=float, default=2.0, help="price of a latent in the sparse map (default: 2)"
        )
        parser.add_argument(
            "--samples",
            type=int,
            default=8,
            help="texts written after each of four prompts, steered to A (default: 8; 0: none)",
        )
        parser.add_argument("--kl", type=float, default=0.25, help="disturbance by steering, in nats (default: 0.25)")
        parser.add_argument("--seed", type=int, default=0, help="seed that draws the controls (default: 0)")
        parser.add_argument("--run", type=Path, help="run whose model to use, for an imported dictionary")

    def run(self, arguments: Namespace) -> int:
        """Contrasts and prints what came out."""
        from sae.apply.contrast.report import ContrastSettings
        from sae.apply.finding import as_text

        settings = ContrastSettings(
            a=arguments.a, b=arguments.b, at=arguments.at, texts=arguments.texts, q=arguments.q,
            ablate=arguments.ablate, penalty=arguments.penalty, samples=arguments.samples, kl=arguments.kl,
            seed=arguments.seed,
        )  # fmt: skip
        finding = contrast_texts(arguments.dictionary, settings, name=arguments.name, run_folder=arguments.run)
        print(as_text(finding, arguments.dictionary))
        return 0


def contrast_texts(folder: Path, settings: ContrastSettings, *, name: str, run_folder: Path | None) -> Finding:
    """Contrasts two sets of texts and writes the finding into the dictionary's folder; returns it."""
    from sae.apply.contrast.report import contrast_finding
    from sae.pipeline.reading import reading_for

    settings.check()
    with reading_for(name, folder, run_folder) as reading:
        return contrast_finding(reading.folder, name, reading.reader, settings, screen=reading.screen)
