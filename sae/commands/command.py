"""What a command of `sae` is; one file in this folder adds one."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from sae.pipeline.opening import Opening

FORMATS = "sae.interop.formats"  # the folder of other libraries' formats, whose names two commands list
DASHBOARDS = "sae.interop.dashboards"  # the folder of layouts of feature pages


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


def add_opening_arguments(parser: ArgumentParser) -> None:
    """What `sae open` and `sae index` share: the dictionary and the text."""
    parser.add_argument(
        "what",
        help="an id such as gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82, a repository of the hub, the address of a "
        "dictionary on a saedex server, or a path: a dictionary folder, or files of another library",
    )
    parser.add_argument(
        "--text",
        required=True,
        metavar="FILES",
        help="installed-docs, or a file, folder or glob of .jsonl, .csv, .parquet (column text) or plain text",
    )
    parser.add_argument(
        "--model",
        help="the language model, where the dictionary does not say it: a repository of the hub, a folder, or a run or YAML "
        "file whose model it is",
    )
    parser.add_argument(
        "--format", help=f"layout of the files, if it cannot be told: {', '.join(plugin_names(FORMATS))}"
    )
    parser.add_argument(
        "--hook",
        help="hook point, such as resid_post.8, if the files do not say it or say it wrongly; several of a crosscoder, with "
        "commas between them",
    )
    parser.add_argument("--target", metavar="HOOK", help="hook point that a transcoder writes")
    parser.add_argument(
        "--tokens", type=float, default=1_000_000, help="tokens of the text to read (default: 1,000,000)"
    )
    parser.add_argument("--ctx-len", type=int, help="tokens per context (default: up to 128)")
    parser.add_argument("--name", help="name of the run folder (default: made of the dictionary and the text)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument(
        "--accept-misfit",
        action="store_true",
        help="go on although the dictionary explains next to nothing of the text",
    )
    parser.add_argument(
        "--accept-licence", action="store_true", help="accept the licence that is shown; it is asked about once"
    )


def opening_of(arguments: Namespace) -> Opening:
    """The arguments of `add_opening_arguments` as a value."""
    from sae.pipeline.opening import Opening

    return Opening(
        what=arguments.what,
        text=arguments.text,
        model=arguments.model,
        format=arguments.format,
        hook=arguments.hook,
        target=arguments.target,
        name=arguments.name,
        tokens=int(arguments.tokens),
        ctx_len=arguments.ctx_len,
        runs_dir=arguments.runs,
        accept_misfit=arguments.accept_misfit,
        accept_licence=arguments.accept_licence,
    )
