"""What a command of `sae` is; one file in this folder adds one."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

FORMATS = "sae.interop.formats"  # the folder of other libraries' formats, whose names two commands list


class Command(ABC):
    """A verb of `sae`. Its file imports nothing heavy: `--help` must answer at once, and without torch."""

    name: ClassVar[str]
    help: ClassVar[str]
    order: ClassVar[int] = 100  # place in the help
    epilog: ClassVar[str | None] = None
    handles_signals: ClassVar[bool] = False  # a server ends on Ctrl-C and SIGTERM by itself

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


def add_config_arguments(parser: ArgumentParser) -> None:
    """The config file and `--set`, which several commands take."""
    parser.add_argument("config", type=Path, help="YAML file, for example training_configs/quickstart.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting, for example train.tokens=1e6; repeat for several",
    )
