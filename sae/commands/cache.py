"""`sae cache`: lists or removes activations that runs share on disk."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from typing import final

from sae.commands.command import Command


@final
class Cache(Command):
    """Lists shared caches of activations, or removes them."""

    name = "cache"
    help = "list or remove the activations that runs share on disk"
    order = 80

    def add_arguments(self, parser: ArgumentParser) -> None:
        """`--remove`."""
        parser.add_argument("--remove", metavar="NAME", help="remove one cache by its name in the list, or `all`")

    def run(self, arguments: Namespace) -> int:
        """Lists, unless something is to be removed."""
        from sae.stream.activation_cache import remove, shared_caches

        if arguments.remove:
            print(f"{remove(arguments.remove) / 1e9:.2f} GB removed")
            return 0

        caches = shared_caches()
        for cache in caches:
            day = time.strftime("%Y-%m-%d", time.localtime(cache.last_used))
            print(f"{cache.folder.name}  {cache.n_bytes / 1e9:8.2f} GB  last used {day}")
            if facts := cache.facts:
                print(f"    {facts['stored']}  {', '.join(facts['channels'])}  contexts of {facts['ctx_len']}")
                print(f"    {facts['model']} in {facts['dtype'].removeprefix('torch.')} on {facts['device']}")

        if not caches:
            print("no shared activations; `harvest.cache: shared` in a config keeps them")

        return 0
