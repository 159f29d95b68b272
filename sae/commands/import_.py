"""`sae import`: a dictionary folder from another library's file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import final

from sae.commands.command import DASHBOARDS, FORMATS, Command, plugin_names


@final
class Import(Command):
    """Makes a dictionary folder; no code in the file is executed."""

    name = "import"
    help = "make a dictionary folder from another library's file (no code in the file is executed)"
    order = 51

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The file, its format, what the file does not say, and the target."""
        parser.add_argument("path", type=Path, help="the file or folder")
        parser.add_argument(
            "--from",
            dest="source",
            required=True,
            metavar="FORMAT",
            help=f"its format: {', '.join(plugin_names(FORMATS))}; or, pages of features with their contexts and labels but "
            "without weights, neuronpedia",
        )
        parser.add_argument(
            "--hook",
            help="hook point, such as resid_post.8, if the file does not say it or says it wrongly; several of a crosscoder, "
            "with commas between them",
        )
        parser.add_argument("--target", dest="writes", metavar="HOOK", help="hook point that a transcoder writes")
        parser.add_argument("target", type=Path, help="new dictionary folder")

    def run(self, arguments: Namespace) -> int:
        """Imports, and says what the dictionary is."""
        if arguments.source in plugin_names(DASHBOARDS):
            return _import_pages(arguments)
        from sae.interop.transfer import import_dictionary
        from sae.publish.card import read_card

        sae = import_dictionary(
            arguments.path, arguments.source, arguments.target, arguments.hook, writes=arguments.writes
        )
        architecture = getattr(sae.config, "architecture", "")
        print(f"{arguments.target}: {architecture}, {sae.d_sae} latents of {sae.d_in} numbers")
        origin = read_card(arguments.target).imported_from
        if origin is not None and origin.note:
            print(f"NOTE: {origin.note}")
        return 0


def _import_pages(arguments: Namespace) -> int:
    from sae.errors import ConfigError
    from sae.foundation.screen import Screen
    from sae.interop.dashboard import import_dashboard
    from sae.interop.dashboards import DASHBOARDS as LAYOUTS

    if arguments.hook or arguments.writes:
        raise ConfigError("--hook and --target are for weights; pages say themselves where they were made.")

    layout = LAYOUTS[arguments.source]
    with Screen().progress("import", 1, "features") as progress:
        card = import_dashboard(arguments.path, layout, arguments.target, name=arguments.source, progress=progress)
    print(
        f"{arguments.target}: {card.sae['d_sae']} features of {card.model.name} at {card.sae['hook']}, without weights. "
        f"Look at them: sae serve {arguments.target}"
    )
    return 0
