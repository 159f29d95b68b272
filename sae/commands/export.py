"""`sae export`: a dictionary in another library's format."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import final

from sae.commands.command import FORMATS, Command, plugin_names


@final
class Export(Command):
    """Writes a dictionary for another library and compares what is read back."""

    name = "export"
    help = "write a dictionary in another library's format"
    order = 50

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The dictionary, the format, the target."""
        parser.add_argument(
            "dictionary", type=Path, help="dictionary folder, for example runs/quickstart/dictionaries/resid-4096"
        )
        parser.add_argument(
            "--to",
            required=True,
            metavar="FORMAT",
            help=f"the format: {', '.join(plugin_names(FORMATS))}; some can only be imported",
        )
        parser.add_argument("target", type=Path, help="new folder to write")

    def run(self, arguments: Namespace) -> int:
        """Exports, and says what the format does not keep."""
        from sae.interop.transfer import export_dictionary

        lossy = export_dictionary(arguments.dictionary, arguments.to, arguments.target)
        print(f"{arguments.target}: written and read back, equal on 1,000 random rows")
        if lossy:
            print(f"LOSSY: {lossy}. The dictionary folder stays the exact one.")
        return 0
