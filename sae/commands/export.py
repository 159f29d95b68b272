"""`sae export`: a dictionary in another library's format."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import final

from sae.commands.command import DASHBOARDS, FORMATS, Command, plugin_names


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
            help=f"the format: {', '.join(plugin_names(FORMATS))}, of which some can only be imported; or, with the features' "
            f"contexts and labels instead of weights, {' or '.join(plugin_names(DASHBOARDS))}",
        )
        parser.add_argument(
            "--no-contexts", action="store_true", help="leave out the pieces of text in which features fire"
        )
        parser.add_argument("target", type=Path, help="new folder to write")

    def run(self, arguments: Namespace) -> int:
        """Exports, and says what the format does not keep."""
        if arguments.to in plugin_names(DASHBOARDS):
            return _export_pages(arguments)
        from sae.interop.transfer import export_dictionary

        lossy = export_dictionary(arguments.dictionary, arguments.to, arguments.target)
        print(f"{arguments.target}: written and read back, equal on 1,000 random rows")
        if lossy:
            print(f"LOSSY: {lossy}. The dictionary folder stays the exact one.")
        return 0


def _export_pages(arguments: Namespace) -> int:
    from sae.foundation.screen import Screen
    from sae.interop.dashboard import export_dashboard
    from sae.interop.dashboards import DASHBOARDS as LAYOUTS

    with Screen().progress("export", 1, "features") as progress:
        export_dashboard(
            arguments.dictionary,
            LAYOUTS[arguments.to],
            arguments.target,
            with_contexts=not arguments.no_contexts,
            progress=progress,
        )
    print(f"{arguments.target}: written for {arguments.to}; weights are not part of this layout")
    return 0
