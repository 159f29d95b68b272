"""`sae site`: some features as pages that any file server can show."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import final

from feature_store.people.database import PeopleError
from sae.commands.command import Command
from sae.errors import ArtefactError, ConfigError


@final
class Site(Command):
    """Writes a site of chosen features: the explorer without its server."""

    name = "site"
    help = "write some features as pages for any file server, such as the supplement of a paper"
    order = 12
    epilog = "Look at it with `python -m http.server --directory FOLDER`. Search, map and filters need `sae serve`."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What to show, and where to write it."""
        parser.add_argument("paths", nargs="+", type=Path, help="run folders or dictionary folders")
        parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder for the site")
        parser.add_argument("--features", metavar="N,N,...", help="these features")
        parser.add_argument("--list", metavar="PERSON/NAME", help="the features of somebody's list (with --people)")
        parser.add_argument("--tag", help="the features that somebody gave this tag (with --people)")
        parser.add_argument(
            "--best", type=int, default=100, metavar="N", help="without these: the N best by score (default: 100)"
        )
        parser.add_argument(
            "--people", type=Path, metavar="FILE", help="show also what people said: the file of `sae serve --people`"
        )

    def run(self, arguments: Namespace) -> int:
        """Writes the site and says what it shows."""
        from server.catalogue import CatalogueError
        from server.site import Selection, SiteError, write_site

        if (arguments.list or arguments.tag) and not arguments.people:
            raise ConfigError("--list and --tag need --people FILE, which holds them.")
        selection = Selection(_numbers(arguments.features), arguments.list, arguments.tag, best=arguments.best)
        try:
            shown = write_site(arguments.paths, selection, arguments.out, arguments.people)
        except SiteError as error:
            raise ConfigError(str(error)) from None
        except (CatalogueError, PeopleError) as error:
            raise ArtefactError(str(error)) from None
        for name, n in shown.items():
            print(f"{name}: {n:,} features")
        print(f"{arguments.out}: look at it with `python -m http.server --directory {arguments.out}`")
        return 0


def _numbers(text: str | None) -> list[int]:
    parts = text.split(",") if text else []
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise ConfigError(f"--features: {text!r} is no list of numbers such as 3,17,42")
    return [int(part) for part in parts]
