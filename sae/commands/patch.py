"""`sae patch DICTIONARY`: which components and features a prediction hangs on, and how well gradients foretell it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, final

from sae.commands.command import Command

if TYPE_CHECKING:
    from feature_store.results.findings import Finding
    from sae.apply.patching.report import PatchSettings


@final
class Patch(Command):
    """Patches components and latents between two prompts, beside estimates by gradients, RelP and integrated gradients."""

    name = "patch"
    help = "which components and features a prediction hangs on, by patching and by gradients"
    order = 47
    epilog = (
        'A line of --pairs is an object with "clean" and "corrupt", prompts of as many tokens, and "answer" and "wrong", what follows '
        "each. Without it pairs are made of names: When Mary and John went to the store, John gave a drink to. The result is "
        "findings/NAME/finding.json in the dictionary's folder. docs/patch.md has the equations."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The dictionary, the prompts, and how many."""
        parser.add_argument("dictionary", type=Path, help="dictionary folder")
        parser.add_argument(
            "--pairs", type=Path, metavar="FILE", help="pairs of prompts (.jsonl; default: made of names)"
        )
        parser.add_argument("--most", type=int, default=12, help="pairs to patch (default: 12)")
        parser.add_argument("--name", default="patch", help="name of the finding (default: patch)")
        parser.add_argument("--seed", type=int, default=0, help="seed of what is drawn (default: 0)")
        parser.add_argument("--run", type=Path, help="run whose model to use, for an imported dictionary")

    def run(self, arguments: Namespace) -> int:
        """Patches and prints what it found."""
        from sae.apply.finding import as_text
        from sae.apply.patching.report import PatchSettings

        settings = PatchSettings(arguments.pairs, arguments.most, arguments.seed)
        finding = patch_pairs(arguments.dictionary, settings, name=arguments.name, run_folder=arguments.run)
        print(as_text(finding, arguments.dictionary))
        return 0


def patch_pairs(folder: Path, settings: PatchSettings, *, name: str, run_folder: Path | None) -> Finding:
    """Patches and writes the finding into the dictionary's folder; returns it."""
    from sae.apply.patching.report import patch_finding
    from sae.pipeline.reading import reading_for

    settings.check()
    with reading_for(name, folder, run_folder) as reading:
        return patch_finding(reading.folder, name, reading.reader, settings, screen=reading.screen)
