"""A run whose model, text and filters a command borrows for dictionaries that are finished."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sae.foundation.files import dictionaries_in, owned
from sae.foundation.screen import Screen
from sae.foundation.stop import StopRequest
from sae.model.hookpoints import Channel
from sae.pipeline.stage import Run
from sae.pipeline.stages.prepare import Prepare
from sae.publish import dictionary

SCRATCH = ".evaluating"  # in the run's folder, so that the next evaluation finds what a killed one left


def borrowed_run(path: Path, run_folder: Path | None) -> tuple[Run, list[Path]]:
    """The run whose model and text are used, and the dictionaries to measure."""

    folders = dictionaries_in(path.resolve())
    return Run((run_folder or folders[0].parent.parent).resolve(), Screen()), folders


def prepared(run: Run, folders: list[Path]) -> AbstractContextManager[tuple[Prepare, Path]]:
    """The stage that loads the run's model and text for these dictionaries, and a scratch folder that is removed."""

    configs = [dictionary.load(folder).config for folder in folders]
    return prepared_for(run, tuple(dict.fromkeys(channel for config in configs for channel in config.channels)))


@contextmanager
def prepared_for(run: Run, channels: tuple[Channel, ...]) -> Iterator[tuple[Prepare, Path]]:
    """The same for any channels."""
    scratch = run.folder / SCRATCH

    with owned(run.folder), StopRequest().listening() as run.stop:
        shutil.rmtree(scratch, ignore_errors=True)  # of an evaluation that was killed
        scratch.mkdir()
        try:
            for statistics in (run.folder / "activations").glob("*.json"):  # the filters of training, not new ones
                shutil.copy(statistics, scratch)
            yield Prepare(channels, scratch), scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
