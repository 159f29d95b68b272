"""`sae index WHAT --text TEXT`: what `sae open` does, without serving it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import final

from sae.commands.command import Command, add_opening_arguments, opening_of


@final
class Index(Command):
    """Brings, checks, indexes and labels a dictionary."""

    name = "index"
    help = (
        "index and label a dictionary on a text, in a run folder of its own; `sae eval` and `sae interpret` work on it"
    )
    order = 15

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The dictionary and the text."""
        add_opening_arguments(parser)

    def run(self, arguments: Namespace) -> int:
        """Performs the run and says what to do next."""
        from sae.pipeline.opening import perform

        summary = perform(opening_of(arguments))
        print(f"To look at the features:  sae serve {summary.folder}")
        return 0
