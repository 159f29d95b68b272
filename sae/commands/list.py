"""`sae list [PATTERN]`: published dictionaries that `sae open` knows by their ids."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import final

from sae.commands.command import Command

MOST = 50


@final
class List(Command):
    """Prints ids with model, hook point, width, l0, size and licence, as far as they are known without a network."""

    name = "list"
    help = "list published dictionaries that `sae open` can fetch"
    order = 6

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What to look for."""
        parser.add_argument(
            "pattern",
            nargs="?",
            default="",
            help="words that the id, model or hook point holds, such as 'gemma-3-270m resid'",
        )
        parser.add_argument("--all", action="store_true", help=f"print all that fit, not {MOST}")

    def run(self, arguments: Namespace) -> int:
        """Prints a table."""
        from sae.interop.families import EXAMPLES
        from sae.interop.saelens_list import all_releases, release_names

        if not release_names():
            print("Ids follow the naming rules of their releases; for a list of those that exist: pip install sae-lens")
            for example in EXAMPLES:
                print(f"  {example}")
            return 0

        words = arguments.pattern.lower().split()
        fitting = [r for r in all_releases() if all(word in r.searched for word in words)]
        shown = fitting if arguments.all else fitting[:MOST]
        for release in shown:
            print("  ".join((release.id, *release.described())))
        hidden = len(fitting) - len(shown)
        print(
            f"{len(fitting):,} dictionaries" + (f", {hidden:,} more than shown: --all, or more words" if hidden else "")
        )
        return 0
