"""`sae eval`: measures of dictionaries whose run is over, on the run's own held-out text."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sae.errors import ConfigError
from sae.evaluation.evaluate import evaluate, known_measures, subject_of
from sae.foundation.files import dictionaries_in, owned
from sae.foundation.screen import Screen
from sae.pipeline.config import config_of_run
from sae.pipeline.prepare import prepare
from sae.publish import dictionary


def evaluate_again(
    path: Path, run: Path | None, measures: tuple[str, ...] | None, against: tuple[Path, ...], screen: Screen
) -> Iterator[tuple[str, Path]]:
    """Measures one dictionary or all of a run; yields (name, folder) as each is done.

    The model, the held-out text and the filters are those of the run that the dictionary lies in, or of `run`.
    """
    folders = dictionaries_in(path.resolve())
    home = run or folders[0].parent.parent
    config = config_of_run(home, "Say which run's model and text to use: --run RUN")
    try:
        names = known_measures(measures) if measures else config.evaluate.measures
    except ValueError as error:
        raise ConfigError(f"--measures: {error}") from None
    saes = [dictionary.load(folder) for folder in folders]
    others = tuple(dictionary.load(folder) for folder in against)
    channels = tuple(dict.fromkeys(channel for sae in saes for channel in sae.config.channels))
    with owned(home), tempfile.TemporaryDirectory() as scratch:
        for statistics in (home / "activations").glob("*.json"):  # the filters of training, not new ones
            shutil.copy(statistics, scratch)
        rooms = prepare(config, home, screen, channels=channels, cache=Path(scratch))
        for sae, folder in zip(saes, folders, strict=True):
            with screen.stage(f"evaluate {folder.name}", 1, "parts") as stage:
                sae.to(rooms.lm.device)
                subject = subject_of(sae, rooms.held_out, config.evaluate, folder, config.seed, stage.update, others)
                evaluate(subject, names, f"{config.name} / {folder.name}", screen.say)
            yield folder.name, folder
