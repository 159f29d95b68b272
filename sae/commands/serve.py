"""`sae serve`: the API and the feature explorer."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, final

from sae.commands.command import Command

if TYPE_CHECKING:
    from feature_store.lookup.meaning import Meaning


@final
class Serve(Command):
    """Serves finished dictionaries; needs no torch."""

    name = "serve"
    help = "open the feature explorer of finished runs"
    order = 10
    handles_signals = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What to serve, and where."""
        parser.add_argument(
            "paths",
            nargs="+",
            help="run folders or dictionary folders, for example runs/quickstart; or places on the hub, "
            "hf://OWNER/NAME[/FOLDER]",
        )
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
        parser.add_argument(
            "--public-read",
            action="store_true",
            help="let everybody who reaches --host read; without it an address beyond this machine is refused",
        )
        parser.add_argument(
            "--people",
            type=Path,
            metavar="FILE",
            help="let people with a key label, rate, tag and take notes; they are kept in FILE, which is made if there is "
            "none (`sae people` gives keys)",
        )
        parser.add_argument(
            "--auth", action="store_true", help="let only people read who have a key of the file of --people"
        )
        parser.add_argument(
            "--meaning",
            action="store_true",
            help="search by meaning too, with a small sentence encoder, which is downloaded on first use (needs the "
            "packages of training)",
        )
        parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
        parser.add_argument(
            "--allow-host",
            action="append",
            default=[],
            metavar="NAME",
            help="answer to this host name too; localhost, addresses and --host are always answered (may be repeated)",
        )

        parser.add_argument(
            "--allow-origin",
            action="append",
            default=[],
            metavar="ORIGIN",
            help="let pages of this site, such as https://blog.example.org, read the API and show features in frames (may be repeated; default: none)",
        )

    def run(self, arguments: Namespace) -> int:
        """Runs the server until it is stopped."""
        from server.file_digests import EARLY

        paths = list(map(_path, arguments.paths))
        EARLY.begin(paths)  # while the rest is imported

        from server.run import Doors, serve

        doors = Doors(
            arguments.allow_host,
            arguments.allow_origin,
            is_public=arguments.public_read,
            needs_key=arguments.auth,
            people=arguments.people,
            meaning=_meaning() if arguments.meaning else None,
        )
        return serve(paths, arguments.host, arguments.port, doors)


def _path(text: str) -> Path:
    """A folder on this machine; all that a place on the hub holds is fetched."""
    if not text.startswith("hf://"):
        return Path(text)
    from sae.foundation.hub import fetch_copy, place_of_address

    place = place_of_address(text)
    return fetch_copy(place.repo, (f"{place.inside}*",), place.revision) / place.inside


def _meaning() -> Meaning:
    from feature_store.lookup.meaning import Meaning
    from sae.foundation.downloads import cache_dir
    from sae.interpret.encoder import sentence_encoder

    return Meaning(sentence_encoder().encode, cache_dir() / "meaning")
