"""The programs `sae` and `sae-train`: the commands put together, errors and their exit codes."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable

from feature_store.errors import FileError
from sae.commands import commands
from sae.commands.train import Train
from sae.errors import (
    EXIT_CODES,
    ConfigError,
    Interrupted,
    SaedexError,
    StoppedByPeer,
    UnavailableError,
    exit_code_of,
)
from sae.foundation.stop import StopRequest
from sae.foundation.visible import visible

EPILOG = "exit codes:\n" + "\n".join(f"  {code:>3}  {text}" for code, text in EXIT_CODES.items())

LONGEST_ERROR = 10_000


def main(argv: list[str] | None = None) -> int:
    """`sae COMMAND ...`; returns the exit code."""
    return _guarded(lambda: parser().parse_args(argv))


def train_main(argv: list[str] | None = None) -> int:
    """`sae-train config.yaml`; returns the exit code."""
    return _guarded(lambda: train_parser().parse_args(argv))


def parser() -> argparse.ArgumentParser:
    """The parser of `sae` with all its commands."""
    raw = argparse.RawDescriptionHelpFormatter
    program = argparse.ArgumentParser(
        prog="sae",
        description="Sparse autoencoders: what a neural network has learned, as features that people can read.",
        epilog=EPILOG,
        formatter_class=raw,
    )
    verbs = program.add_subparsers(required=True, metavar="command")

    for command in commands():
        verb = verbs.add_parser(command.name, help=command.help, description=command.help)
        command.add_arguments(verb)
        verb.set_defaults(command=command)

    return program


def train_parser() -> argparse.ArgumentParser:
    """The parser of `sae-train`."""
    program = argparse.ArgumentParser(
        prog="sae-train",
        description="Train, evaluate, index and label the dictionaries of a config. The same command resumes.",
        epilog="example: sae-train training_configs/quickstart.yaml --set train.tokens=1e6\n\n" + EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command = Train()
    command.add_arguments(program)
    program.set_defaults(command=command)
    return program


def _guarded(parse: Callable[[], argparse.Namespace]) -> int:
    """Runs the command that `parse` reads and ends the process as torchrun wants it; without torchrun torch is not loaded for that."""
    code = _exit_code(parse)
    if "WORLD_SIZE" not in os.environ:
        return code
    from sae.foundation.distributed import exit_process

    return exit_process(code)


def _exit_code(parse: Callable[[], argparse.Namespace]) -> int:
    """Runs the command that `parse` reads. An error that saedex expects becomes one clear message and its exit code."""
    try:
        with StopRequest().listening():
            arguments = parse()
            if not arguments.command.handles_signals:
                return arguments.command.run(arguments)
        return arguments.command.run(arguments)
    except (SaedexError, FileError) as error:
        # All processes find the same fault in a config; the first one says it for them.
        is_repeated = isinstance(error, ConfigError) and os.environ.get("RANK", "0") != "0"
        if not isinstance(error, StoppedByPeer) and not is_repeated:
            _print_error(str(error))
        return exit_code_of(error)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return Interrupted.exit_code
    except ModuleNotFoundError as error:
        _print_error(f"{error.name} is not installed. Training needs it: pip install 'saedex[train]'.")
        return UnavailableError.exit_code
    except OSError as error:
        _print_error(f"{error}. Check the disk and the permissions.")
        return exit_code_of(error)
    except Exception as error:
        print(visible(traceback.format_exc()), file=sys.stderr)
        _print_error("this is a bug in saedex; please report the lines above.")
        return exit_code_of(error)


def _print_error(text: str) -> None:
    """Prints an error. Its text may hold that of a file from anywhere, so that it may also be endless."""
    shown = visible(text)
    rest = len(shown) - LONGEST_ERROR
    print(f"error: {shown[:LONGEST_ERROR]}{f' ... and {rest:,} characters' if rest > 0 else ''}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
