"""`sae config explain` and `sae config check`."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from typing import final

from sae.commands.command import Command, add_config_arguments


@final
class Config(Command):
    """Explains the settings, or checks a config file."""

    name = "config"
    help = "explain every setting, or check a config file"
    order = 90

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Two verbs."""
        verbs = parser.add_subparsers(required=True, metavar="command")
        explain = verbs.add_parser("explain", help="list every setting with its default and meaning")
        explain.set_defaults(work=_explain)
        check = verbs.add_parser("check", help="read a config file and print it with all defaults")
        add_config_arguments(check)
        check.set_defaults(work=_check)


def _explain(_: Namespace) -> int:
    from sae.pipeline.config import explain

    for setting in explain():
        print(f"{setting.key:<52} {setting.default:<22} {setting.meaning}")
    return 0


def _check(arguments: Namespace) -> int:
    from sae.pipeline.config import load_config

    config = load_config(arguments.config, tuple(arguments.set))
    print(json.dumps(config.model_dump(mode="json"), indent=1))
    return 0
