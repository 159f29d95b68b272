"""Licences with conditions: shown, asked about once, and remembered on this machine."""

from __future__ import annotations

import sys

from sae.errors import ConfigError
from sae.foundation.downloads import cache_dir
from sae.foundation.files import read_json, write_json
from sae.interop.families import CC_BY


def ask_once(name: str, licence: str, *, is_accepted: bool) -> None:
    """Returns if the licence has no conditions beyond naming its authors, or was accepted before or is accepted now.

    Somebody at a terminal is asked; otherwise `is_accepted` must say it. Raises `ConfigError` if nobody accepts.
    """
    path = cache_dir() / "accepted-licences.json"
    accepted = read_json(path) if path.exists() else []
    if licence == CC_BY or licence in accepted:
        return
    if not is_accepted and sys.stdin.isatty():
        is_accepted = input(f"{name}: licence {licence}. Do you accept it? [y/N] ").strip().lower() in ("y", "yes")
    if not is_accepted:
        raise ConfigError(
            f"{name}: licence {licence}. Read it on the pages of the release and of its model; --accept-licence says that you "
            "accept it, and is remembered."
        )
    write_json(path, [*accepted, licence])
