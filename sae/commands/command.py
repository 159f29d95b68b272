"""What a command of `sae` is; one file in this folder adds one."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from typing import ClassVar


class Command(ABC):
    """A verb of `sae`. Its file imports nothing heavy: `--help` must answer at once, and without torch."""

    name: ClassVar[str]
    help: ClassVar[str]
    order: ClassVar[int] = 100  # place in the help
    epilog: ClassVar[str | None] = None

    @abstractmethod
    def add_arguments(self, parser: ArgumentParser) -> None:
        """Describes the arguments. A command with several verbs adds a parser for each, with its `work`."""

    def run(self, arguments: Namespace) -> int:
        """Does the work and returns the exit code; by default the `work` of the verb on the command line."""
        return arguments.work(arguments)


def plugin_names(package: str) -> list[str]:
    """Names of the plug-ins in a folder, by their files; nothing is imported."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    return sorted(module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))
