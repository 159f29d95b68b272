"""`sae serve`: opens the dictionaries, checks the port, and runs the server until it is stopped."""

from __future__ import annotations

import re
import signal
import socket
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import uvicorn

from server.app import create_app
from server.catalogue import CatalogueError, open_catalogue
from server.connection import MOST_HEADER_BYTES, BoundedConnection
from server.middleware.hosts import host_of, is_address

ORIGIN = re.compile(r"https?://[A-Za-z0-9._-]+(:\d{1,5})?")
WRONG, MISSING, UNAVAILABLE = 2, 66, 69
FINISH_S = 5  # for answers that are under way when the server is stopped


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


def _say(line: str) -> None:
    """Writes a line for people; characters that steer a terminal are spelled out, because names come from files."""
    sys.stderr.write("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line) + "\n")


def _is_loopback(host: str) -> bool:
    return ip_address(host).is_loopback if is_address(host) else host == "localhost"


def serve(
    paths: list[Path], host: str, port: int, *, allowed_hosts: list[str], origins: list[str], is_public: bool
) -> int:
    """Exit code of the server: 0 after a clean stop, by Ctrl-C or SIGTERM; 66 without a sound dictionary; 69 if the port is
    taken; 2 if a host name cannot be one, or if others could read and that is not meant (`is_public`).
    """
    if not _is_loopback(host) and not is_public:
        _say(
            f"error: {host} is not this machine alone. Whoever reaches port {port} could read these dictionaries, with the "
            "training text in their contexts; there are no accounts and no encryption (docs/security.md). Give "
            "--public-read if that is meant."
        )
        return WRONG

    wrong = [origin for origin in origins if not ORIGIN.fullmatch(origin)]
    if wrong:
        _say(f"error: --allow-origin {wrong[0]}: an origin is wanted, such as https://blog.example.org.")
        return WRONG

    strange = [name for name in allowed_hosts if host_of(name) is None]
    if strange:
        _say(f"error: --allow-host {strange[0]}: a host name is wanted, such as explorer.example.org.")
        return WRONG

    refusal = _refusal(host, port)
    if refusal:
        _say(f"error: {host} port {port} cannot be used ({refusal}). Choose another with --port.")
        return UNAVAILABLE

    try:
        catalogue = open_catalogue(paths)
    except CatalogueError as error:
        _say(f"error: {error}")
        return MISSING

    for damage in catalogue.damage:
        _say(f"error: left out {damage.folder}: {damage.problem}")
    for entry in catalogue.values():
        _say(f"serving {entry.id}  ({entry.folder})")

    if not _is_loopback(host):
        _say(f"everybody who reaches port {port} can read these dictionaries, with the training text in their contexts")
    shown = f"[{host}]" if ":" in host else host
    _say(f"explorer: http://{shown}:{port}/   API: http://{shown}:{port}/api/v1/openapi.json   (Ctrl-C stops)")

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as Ctrl-C does: uvicorn finishes and returns
    uvicorn.run(create_app(catalogue, host_names=[host, *allowed_hosts], origins=origins), **settings(host, port))

    return 0


def settings(host: str, port: int) -> dict[str, Any]:
    """How uvicorn runs the application."""
    return {
        "host": host,
        "port": port,
        "http": BoundedConnection,
        "h11_max_incomplete_event_size": MOST_HEADER_BYTES,
        "ws": "none",
        "proxy_headers": False,
        "log_level": "error",  # what a stranger sends is no news
        "access_log": False,
        "timeout_graceful_shutdown": FINISH_S,
    }
