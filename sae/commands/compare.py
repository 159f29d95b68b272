"""`sae compare A B`: which features of one dictionary are found again in another."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, final

from sae.commands.command import Command

if TYPE_CHECKING:
    from feature_store.results.comparison import Comparison

TOKENS = 20_000


@final
class Compare(Command):
    """Compares two dictionaries, and keeps the result for the explorer."""

    name = "compare"
    help = "which features of one dictionary are found again in another"
    order = 35
    epilog = (
        "A feature is matched if both are each other's nearest by decoder row with a cosine of at least 0.7; split if two or "
        "more of the other lie nearest to it; merged if two or more here share their nearest; near if it is found otherwise; "
        "alone if not; dead if it never fires. The result is comparisons/ID/comparison.json in A, which the explorer shows."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Both dictionaries, and what tells how much of a difference is chance."""
        parser.add_argument("dictionary", type=Path, help="dictionary folder")
        parser.add_argument("other", type=Path, help="dictionary folder to compare with, of the same model")
        parser.add_argument(
            "--twin",
            type=Path,
            metavar="DICTIONARY",
            help="a dictionary like the first one but of another seed: how much of it is matched tells what seeds alone do",
        )
        parser.add_argument(
            "--tokens",
            type=int,
            default=TOKENS,
            help=f"held-out tokens on which both fire, for the correlation of matched features (default: {TOKENS:,}; "
            "0: compare directions alone, without the model)",
        )
        parser.add_argument("--run", type=Path, help="run whose model and text to use, for an imported dictionary")

    def run(self, arguments: Namespace) -> int:
        """Compares and prints the shares."""
        from sae.errors import ConfigError

        if arguments.tokens < 0:
            raise ConfigError(f"--tokens: {arguments.tokens} is negative; give a number of tokens, or 0.")
        comparison = compare_dictionaries(
            arguments.dictionary, arguments.other, arguments.twin, arguments.run, tokens=arguments.tokens
        )
        for side in (comparison.this, comparison.other):
            counts = side.counts()
            print(f"{side.dictionary}: " + ", ".join(f"{n:,} {kind}" for kind, n in counts.items() if n))
        if comparison.twin:
            print(f"of the first, {comparison.twin.matched:.1%} are matched in its twin {comparison.twin.dictionary}")
        print(
            f"random directions reach a cosine of {comparison.random_cosine:.2f}; {comparison.found} counts as found again"
        )
        return 0


def compare_dictionaries(
    one: Path, other: Path, twin: Path | None, run_folder: Path | None, *, tokens: int
) -> Comparison:
    """Compares two dictionaries and writes the result into the first one's folder; returns it."""
    from feature_store.results.comparison import FOLDER
    from feature_store.results.comparison import Comparison as Found
    from sae.errors import ConfigError
    from sae.pipeline.borrowed import borrowed_run, prepared
    from sae.pipeline.stage import perform
    from sae.pipeline.stages.compare import Compare as CompareStage
    from sae.publish import dictionary

    run, folders = borrowed_run(one, run_folder)
    if len(folders) != 1:
        names = ", ".join(folder.name for folder in folders)
        raise ConfigError(
            f"{one}: a run of {len(folders)} dictionaries; give the folder of one: dictionaries/ and {names}"
        )
    folder = folders[0]
    stage = CompareStage(folder, other.resolve(), twin.resolve() if twin else None, tokens)
    card = dictionary.read_card(stage.other)
    if tokens:
        with prepared(run, [folder, stage.other]) as (prepare, _):
            perform([prepare, stage], run)
    else:
        stage.work(run)
    return Found.read(folder / FOLDER / f"{card.run}.{card.name}")
