"""`sae serve`: opens the dictionaries, checks the port, and runs the server until it is stopped."""

from __future__ import annotations

import re
import signal
import socket
import sys
import threading
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import uvicorn

from feature_store.lookup.meaning import Meaning
from feature_store.people.database import SCOPES, People, PeopleError
from server.app import create_app
from server.catalogue import Catalogue, CatalogueError, open_catalogue
from server.connection import MOST_HEADER_BYTES, BoundedConnection
from server.middleware.hosts import host_of, is_address

ORIGIN = re.compile(r"https?://[A-Za-z0-9._-]+(:\d{1,5})?")
WRONG, MISSING, UNAVAILABLE = 2, 66, 69
OWNER = "owner"
FINISH_S = 5  # for answers that are under way when the server is stopped


def why_refused(host: str, port: int) -> str | None:
    """Why no server can listen on an address, or None."""
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


@dataclass(frozen=True)
class Doors:
    """Who may come in, and what they may do: hosts and sites that are answered, and the file of people's keys and entries."""

    allowed_hosts: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    is_public: bool = False  # everybody who reaches the port may read
    needs_key: bool = False  # reading needs a key of the file
    people: Path | None = None
    meaning: Meaning | None = None  # for searches by meaning

    def problem(self, host: str, port: int) -> str | None:
        """What is wrong with them for a server at an address, or None."""
        if not _is_loopback(host) and not self.is_public and not self.needs_key:
            return (
                f"{host} is not this machine alone. Whoever reaches port {port} could read these dictionaries, with the "
                "training text in their contexts; there is no encryption (docs/security.md). Give --public-read if that is "
                "meant, or --auth so that reading needs a key."
            )
        if self.needs_key and self.people is None:
            return "--auth needs the file of keys: give --people FILE (`sae people FILE add NAME` makes a key)."
        for origin in self.origins:
            if not ORIGIN.fullmatch(origin):
                return f"--allow-origin {origin}: an origin is wanted, such as https://blog.example.org."
        for name in self.allowed_hosts:
            if host_of(name) is None:
                return f"--allow-host {name}: a host name is wanted, such as explorer.example.org."
        return None


def serve(paths: list[Path], host: str, port: int, doors: Doors) -> int:
    """Exit code of the server: 0 after a clean stop, by Ctrl-C or SIGTERM; 66 without a sound dictionary, or if the file of
    people is none; 69 if the port is taken; 2 if the doors are wrong.
    """
    problem = doors.problem(host, port)
    if problem:
        _say(f"error: {problem}")
        return WRONG

    refusal = why_refused(host, port)
    if refusal:
        _say(f"error: {host} port {port} cannot be used ({refusal}). Choose another with --port.")
        return UNAVAILABLE

    try:
        catalogue = open_catalogue(paths)
        people = People(doors.people, create=True) if doors.people else None
    except (CatalogueError, PeopleError) as error:
        _say(f"error: {error}")
        return MISSING

    for damage in catalogue.damage:
        _say(f"error: left out {damage.folder}: {damage.problem}")
    for entry in catalogue.entries():
        _say(f"serving {entry.id}  ({entry.folder})")

    if doors.meaning:
        _read_meanings(doors.meaning, catalogue)
    _say_who_comes_in(host, port, doors, people)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops as Ctrl-C does: uvicorn finishes and returns
    app = create_app(
        catalogue,
        people=people,
        needs_key=doors.needs_key,
        meaning=doors.meaning,
        host_names=[host, *doors.allowed_hosts],
        origins=doors.origins,
    )
    threading.Thread(target=catalogue.load_widest, daemon=True).start()
    uvicorn.run(app, **settings(host, port))

    return 0


def _read_meanings(meaning: Meaning, catalogue: Catalogue) -> None:
    """Makes the vectors of all dictionaries, which takes a while the first time."""
    for entry in catalogue.entries():
        _say(f"reading what is said of the features of {entry.id}, for searches by meaning")
        meaning.vectors(entry.edition().store)


def _say_who_comes_in(host: str, port: int, doors: Doors, people: People | None) -> None:
    """The address, who can read there, and the key of the owner of a new file."""
    if not _is_loopback(host) and not doors.needs_key:
        _say(f"everybody who reaches port {port} can read these dictionaries, with the training text in their contexts")
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/"
    if people and not people.key_records():
        key = people.add_key(OWNER, SCOPES)
        _say(f"new file {people.path}; your key, shown once: {key}")
        _say(f"to label, rate and take notes, open {address}#/key/{key}")
    _say(f"explorer: {address}   API: {address}api/v1/openapi.json   (Ctrl-C stops)")


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
