"""`sae open WHAT --text TEXT`: a dictionary from anywhere, looked at on a text of one's own."""

from __future__ import annotations

import subprocess
import sys
import webbrowser
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import final

from sae.commands.command import Command, add_opening_arguments, opening_of


@final
class Open(Command):
    """Brings, checks, indexes and labels a dictionary, and serves it as soon as there is something to see."""

    name = "open"
    help = "look at anybody's dictionary on your own text: fetch, check, index, label and serve it; the same command resumes"
    order = 5

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The dictionary, the text, and where to serve."""
        add_opening_arguments(parser)
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
        parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
        parser.add_argument("--no-browser", action="store_true", help="do not open a browser")

    def run(self, arguments: Namespace) -> int:
        """Performs the run, with a server beside it from the first look on."""
        server: list[subprocess.Popen[bytes]] = []
        address = f"http://{arguments.host}:{arguments.port}/"

        def serve(folder: Path) -> None:
            if server:
                return
            command = [sys.executable, "-m", "sae.cli", "serve", str(folder), "--host", arguments.host]
            server.append(subprocess.Popen([*command, "--port", str(arguments.port)], stdout=subprocess.DEVNULL))
            print(f"\nThe first features can be seen at {address}; more follow while this goes on.\n", flush=True)
            if sys.stdout.isatty() and not arguments.no_browser:
                webbrowser.open(address)

        from sae.pipeline.opening import perform

        try:
            perform(opening_of(arguments), serve)
            print(f"Everything is there: {address}   (Ctrl-C ends the server)", flush=True)
            return server[0].wait() if server else 0
        finally:
            for process in server:
                process.terminate()
                process.wait()
