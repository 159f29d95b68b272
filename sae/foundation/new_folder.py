"""A folder that is written once, by one process: what people name as a target and do not want replaced."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from feature_store.atomic import sync_folder
from sae.errors import ConfigError, LockedError
from sae.foundation.files import owned, temporary_of, write_folder


def check_new(folder: Path) -> None:
    """Raises `ConfigError` if the folder exists: before long work, what is said at its end."""
    if folder.exists():
        raise ConfigError(f"{folder}: exists already. Give a new folder.")


def write_new_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """As `write_folder`, for a folder that does not exist; if anything fails, nothing stays.

    Of several processes that write the same folder one does; the others get `LockedError`. Raises `ConfigError` if the
    folder exists already. What a killed process left is taken over.
    """
    check_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = temporary_of(folder)
    with _held(scratch, folder):
        try:
            write_folder(scratch / folder.name, fill)
            if folder.exists():
                raise LockedError(f"{folder}: another process has written it meanwhile. Give a new folder.")
            (scratch / folder.name).rename(folder)
        finally:
            shutil.rmtree(scratch)

    sync_folder(folder.parent)


@contextmanager
def _held(scratch: Path, folder: Path) -> Iterator[None]:
    """Holds the scratch folder; raises `LockedError` that speaks of the folder that people know."""
    with ExitStack() as stack:
        try:
            stack.enter_context(owned(scratch))
        except LockedError:
            raise LockedError(
                f"{folder}: another process is writing it. Wait for it, or give another folder."
            ) from None
        yield
