"""A dictionary with the model of its run, for texts that people bring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sae.apply.finding import finding_folder
from sae.apply.text_codes import TextReader
from sae.errors import ConfigError
from sae.foundation.files import owned
from sae.foundation.screen import Screen
from sae.pipeline.config import config_of_run
from sae.pipeline.sources import check_model_of, harvester_of
from sae.publish import dictionary
from sae.publish.placement import placed
from sae.stream.harvest import Harvester


def reader_of(folder: Path, run_folder: Path | None, screen: Screen, *, n_contexts: int = 1) -> TextReader:
    """A reader of the dictionary in `folder` with the model of the run it lies in, or of `run_folder`.

    Raises `ConfigError` if there is no run, and `ArtefactError` if the dictionary was trained on another model.
    """
    folder = folder.resolve()
    sae = dictionary.load(folder)
    home = run_folder or folder.parent.parent
    config = config_of_run(home, "Say which run's model to use: --run RUN")
    harvester = harvester_of(config, home, sae.config.channels, screen)
    check_model_of(folder, harvester.lm)

    return TextReader(placed(sae, harvester.lm.device), harvester, config.text.ctx_len, n_contexts)


class Reading(NamedTuple):
    """A dictionary folder that a finding is written into, its reader, and the screen."""

    folder: Path
    reader: TextReader
    screen: Screen


@contextmanager
def reading_for(name: str, folder: Path, run_folder: Path | None) -> Iterator[Reading]:
    """What a command needs that writes the finding `name`: the model is loaded after the name is checked, the folder is owned."""
    folder, screen = folder.resolve(), Screen()
    finding_folder(folder, name)
    reader = reader_of(folder, run_folder, screen)
    with owned(folder):
        yield Reading(folder, reader, screen)


def further_reader(reader: TextReader, folder: Path) -> TextReader:
    """A reader of another dictionary with the model of `reader`; raises `ArtefactError` if that was trained on another model."""
    lm, sae = reader.lm, dictionary.load(folder)
    check_model_of(folder, lm)
    harvester = Harvester(lm, sae.config.channels, reader.harvester.config, reader.harvester.packing)
    return TextReader(sae.to(lm.device), harvester, reader.ctx_len, reader.n_contexts)


def named_folders(folders: Sequence[Path], option: str) -> dict[str, Path]:
    """Folders by their names; raises `ConfigError` if two have the same."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise ConfigError(f"{option}: {', '.join(names)}; two have the same name. Rename the folder of one.")
    return dict(zip(names, folders, strict=True))
