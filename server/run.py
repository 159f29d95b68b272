"""`sae serve`: opens the dictionaries, checks the port, and runs the server until it is stopped."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import uvicorn

from server.app import create_app
from server.catalogue import CatalogueError, open_catalogue

MISSING, UNAVAILABLE = 66, 69


def _refusal(host: str, port: int) -> str | None:
    """Why the server cannot listen on the address, or None."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        return str(error)
    return None


def serve(paths: list[Path], host: str, port: int) -> int:
    """Exit code of the server: 0 after a clean stop, 66 without a dictionary, 69 if the port is taken."""
    refusal = _refusal(host, port)
    if refusal:
        sys.stderr.write(f"error: {host} port {port} cannot be used ({refusal}). Choose another with --port.\n")
        return UNAVAILABLE

    try:
        catalogue = open_catalogue(paths)
    except CatalogueError as error:
        sys.stderr.write(f"error: {error}\n")
        return MISSING

    for entry in catalogue.values():
        sys.stderr.write(f"serving {entry.id}  ({entry.folder})\n")

    sys.stderr.write(
        f"explorer: http://{host}:{port}/   API: http://{host}:{port}/api/v1/openapi.json   (Ctrl-C stops)\n"
    )
    uvicorn.run(create_app(catalogue), host=host, port=port, log_level="warning", access_log=False)

    return 0
