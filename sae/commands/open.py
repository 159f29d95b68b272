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
        _check_address(arguments.host, arguments.port)
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
            return _waited(server[0])
        finally:
            for process in server:
                process.terminate()
                process.wait()


def _check_address(host: str, port: int) -> None:
    """Raises `ConfigError` or `UnavailableError` for an address that no server could have later."""
    from sae.errors import ConfigError, UnavailableError
    from server.run import Doors, why_refused

    if problem := Doors().problem(host, port):
        raise ConfigError(f"--host: {problem} (`sae index` makes the same, for `sae serve` with these.)")
    if reason := why_refused(host, port):
        raise UnavailableError(f"--port {port}: cannot listen on {host}:{port} ({reason}). Give another.")


def _waited(server: subprocess.Popen[bytes]) -> int:
    """The exit code of the server when it ends by itself; 0 if people end it, as all that was wanted is done."""
    from sae.errors import Interrupted

    try:
        return server.wait()
    except Interrupted:
        return 0
