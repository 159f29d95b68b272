"""`sae publish`: a dictionary as a repository of the hub."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import final

from sae.commands.command import Command


@final
class Publish(Command):
    """Sends a dictionary with its store to the hub; saedex and SAELens load it from there."""

    name = "publish"
    help = "put a dictionary on the Hugging Face hub, for saedex and SAELens"
    order = 52

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The dictionary, the place, and what goes there."""
        parser.add_argument(
            "dictionary", type=Path, help="dictionary folder, for example runs/quickstart/dictionaries/resid-4096"
        )
        parser.add_argument(
            "place", help="OWNER/NAME of a repository, which is made if there is none, if needed /FOLDER"
        )
        parser.add_argument(
            "--licence", metavar="ID", help="licence of the dictionary as the hub writes it, such as apache-2.0"
        )
        parser.add_argument(
            "--no-text",
            action="store_true",
            help="leave out the store and the contexts, which hold pieces of the text, or all of it",
        )
        parser.add_argument("--private", action="store_true", help="make a private repository, if it is made")

    def run(self, arguments: Namespace) -> int:
        """Publishes, and says where it is and who can load it."""
        from sae.foundation.hub import place_of_address
        from sae.interop.hub_release import release

        sent = release(
            arguments.dictionary,
            place_of_address(arguments.place),
            licence=arguments.licence,
            with_text=not arguments.no_text,
            private=arguments.private,
        )
        print(f"{sent.place}: {sent.n_bytes / 1e6:,.1f} MB published; sae.load({str(sent.place)!r}) reads it")
        if not arguments.no_text:
            print(
                "Its store holds text that was indexed: the licence of that text is for you to keep. --no-text leaves it out."
            )
        if arguments.licence is None:
            print("No licence was said: others may not use it. --licence apache-2.0 says one.")
        if sent.unread_by_saelens:
            print(f"SAELens cannot load it: {sent.unread_by_saelens}")
        return 0
