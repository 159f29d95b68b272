"""`sae heads DICTIONARY`: which heads, source tokens and earlier latents the features of an attention dictionary come from."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, final

from sae.commands.command import Command

if TYPE_CHECKING:
    from feature_store.results.findings import Finding
    from sae.apply.heads.report import HeadsSettings


@final
class Heads(Command):
    """Attributes the strongest firings of every feature to heads and tokens, and looks at the heads."""

    name = "heads"
    help = "which heads, tokens and earlier features those of an attention dictionary come from"
    order = 37
    epilog = (
        "For a dictionary at attn_z that has an index. The result is findings/NAME/finding.json in its folder, and "
        "attributions.duckdb beside it, which the page of every feature shows. With --earlier, dictionaries of earlier hook points "
        "of the same model, the strongest firings are followed back through them. docs/heads.md has the equations."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The dictionary, earlier ones, and how much to look at."""
        parser.add_argument("dictionary", type=Path, help="dictionary folder, of heads' outputs (attn_z)")
        parser.add_argument(
            "--earlier", type=Path, nargs="+", default=[], metavar="DICTIONARY", help="earlier dictionaries"
        )
        parser.add_argument("--features", type=int, default=100_000, help="features, the most frequent (default: all)")
        parser.add_argument("--contexts", type=int, default=5, help="strongest contexts of each (default: 5)")
        parser.add_argument("--traced-back", type=int, default=64, help="features followed back (default: 64)")
        parser.add_argument(
            "--prefixes", type=int, default=100, help="random texts of every prefix length (default: 100)"
        )
        parser.add_argument("--name", default="heads", help="name of the finding (default: heads)")
        parser.add_argument("--seed", type=int, default=0, help="seed of random texts (default: 0)")
        parser.add_argument("--run", type=Path, help="run whose model to use, for an imported dictionary")

    def run(self, arguments: Namespace) -> int:
        """Attributes and prints what it found."""
        from sae.apply.finding import as_text
        from sae.apply.heads.report import HeadsSettings

        settings = HeadsSettings(
            arguments.features,
            arguments.contexts,
            arguments.traced_back,
            prefixes=arguments.prefixes,
            seed=arguments.seed,
        )
        finding = attribute_heads(
            arguments.dictionary, arguments.earlier, settings, name=arguments.name, run_folder=arguments.run
        )
        print(as_text(finding, arguments.dictionary))
        return 0


def attribute_heads(
    folder: Path, earlier: list[Path], settings: HeadsSettings, *, name: str, run_folder: Path | None
) -> Finding:
    """Attributes, and writes the finding into the dictionary's folder; returns it."""
    from sae.apply.heads.attribution import check_attributable
    from sae.apply.heads.report import heads_finding
    from sae.pipeline.reading import further_reader, named_folders, reading_for
    from sae.publish import dictionary

    settings.check()
    check_attributable(dictionary.load(folder))
    folders = named_folders(earlier, "--earlier")
    with reading_for(name, folder, run_folder) as reading:
        others = {other: further_reader(reading.reader, path).sae for other, path in folders.items()}
        return heads_finding(reading.folder, name, reading.reader, others, settings=settings, screen=reading.screen)
