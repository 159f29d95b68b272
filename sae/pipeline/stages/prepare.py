"""Loads what a run reads (`sae.pipeline.sources`): the model, the tokens, and activations that are harvested later."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from sae.model.hookpoints import Channel
from sae.pipeline.sources import prepare
from sae.pipeline.stage import Run, Stage


@final
@dataclass(frozen=True)
class Prepare(Stage):
    """Loads the model and reads the text; activations wait until a stage asks for them.

    `channels` default to those of the config's dictionaries. `scratch` takes the place of the run's own folder of
    activations, so that a finished run stays as it is.
    """

    title = "prepare"
    workers = "all"
    channels: tuple[Channel, ...] | None = None
    scratch: Path | None = None

    def done(self, run: Run) -> bool:
        """Whether the sources are in memory."""
        return run.sources is not None

    def work(self, run: Run) -> None:
        """See the class."""
        run.sources = prepare(
            run.config,
            run.folder,
            run.screen,
            channels=self.channels,
            scratch=self.scratch,
            processes=run.processes,
        )
