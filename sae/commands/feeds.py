"""`sae feeds A B`: which latents of an earlier dictionary feed which latents of a later one."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, final

from sae.commands.command import Command

if TYPE_CHECKING:
    from feature_store.results.findings import Finding

MOST = 10


@final
class Feeds(Command):
    """Works out edges between two dictionaries, and keeps them in both."""

    name = "feeds"
    help = "which features of an earlier layer feed those of a later one"
    order = 36
    epilog = (
        "An edge is the mean over tokens of what a feature's part of the activation adds to the pre-activation of a later feature where "
        "that one fires, to first order. The finding feeds-B of A and fed-by-A of B hold the ten strongest of every later feature."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Both dictionaries, and how much to look at."""
        parser.add_argument("earlier", type=Path, help="dictionary folder of the earlier hook point")
        parser.add_argument("later", type=Path, help="dictionary folder of the later one, of the same model")
        parser.add_argument(
            "--features",
            type=int,
            default=64,
            help="features of the later one, those that fire most often (default: 64)",
        )
        parser.add_argument("--contexts", type=int, default=32, help="held-out contexts to look at (default: 32)")
        parser.add_argument("--run", type=Path, help="run whose model and text to use, for an imported dictionary")

    def run(self, arguments: Namespace) -> int:
        """Works them out and prints the strongest."""
        from sae.apply.finding import as_text

        finding = feed(
            arguments.earlier, arguments.later, features=arguments.features, contexts=arguments.contexts,
            run_folder=arguments.run,
        )  # fmt: skip
        print(as_text(finding, arguments.later))
        return 0


def feed(earlier: Path, later: Path, *, features: int, contexts: int, run_folder: Path | None) -> Finding:
    """Works out the edges, writes a finding into each dictionary's folder, and returns that of the later one."""
    from sae.errors import ConfigError
    from sae.foundation.files import owned
    from sae.pipeline.borrowed import borrowed_run, prepared
    from sae.pipeline.stage import perform
    from sae.pipeline.stages.feed import Feed

    if features < 1 or contexts < 1:
        raise ConfigError(f"--features {features}, --contexts {contexts}: wanted are 1 or more of each.")
    folders = earlier.resolve(), later.resolve()
    run, _ = borrowed_run(folders[0], run_folder)
    stage = Feed(*folders, features=features, contexts=contexts, most=MOST)
    with prepared(run, list(folders)) as (prepare, _), owned(folders[0]), owned(folders[1]):
        perform([prepare, stage], run)
    return stage.findings[-1]
