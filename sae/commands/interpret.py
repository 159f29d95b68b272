"""`sae interpret`: labels and scores of dictionaries whose run is over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from feature_store.queries import StoreError
from sae.errors import ArtefactError, ConfigError
from sae.foundation.files import dictionaries_in, owned, write_json
from sae.foundation.screen import Screen
from sae.interpret.interpret import InterpretConfig, interpret
from sae.interpret.judge import JudgeConfig
from sae.interpret.running import Running
from sae.pipeline.config import config_of_run
from sae.pipeline.prepare import harvester_of
from sae.publish import dictionary


def _range(text: str | None) -> range | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not found or (found[2] and int(found[2]) < int(found[1])):
        raise ConfigError(f"--features: {text!r} is no range. Write one feature, such as 7, or first-last: 0-999")
    return range(int(found[1]), int(found[2] or found[1]) + 1)


def config_of(explainers: str | None, scorers: str | None, judge: dict[str, Any] | None) -> InterpretConfig:
    """The settings that the command line gives; raises `ConfigError`."""
    lists = {"explainers": explainers, "scorers": scorers}
    given: dict[str, Any] = {key: tuple(v.split(",")) for key, v in lists.items() if v is not None}
    try:
        return InterpretConfig(**given, judge=JudgeConfig(**judge) if judge else None)
    except ValidationError as error:
        found = error.errors()[0]
        where = "".join(f"--{part}: " for part in found["loc"][:1])
        raise ConfigError(f"{where}{found['msg'].removeprefix('Value error, ')}") from None


def interpret_again(
    path: Path, features: str | None, config: InterpretConfig, screen: Screen
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Explains and scores one dictionary or all of a run; yields (name, summary) as each is published."""
    chosen = _range(features)
    for folder in dictionaries_in(path.resolve()):
        with owned(folder), screen.stage(f"interpret {folder.name}", 1, "features") as stage:
            try:
                running = lru_cache(partial(_running, folder))
                summary = interpret(folder, config, stage.update, running, chosen)
            except StoreError as error:
                raise ArtefactError(str(error)) from None
            write_json(folder / "labels.json", summary)
        yield folder.name, summary


def _running(folder: Path) -> Running:
    """The dictionary of a finished run, with the run's model."""
    home = folder.parent.parent
    config = config_of_run(home, "A scorer that runs the model needs that run.")
    sae = dictionary.load(folder)
    quiet = Screen(Console(quiet=True))  # the bar of the features stays the only one
    harvester = harvester_of(config, home, sae.config.activations, quiet)
    return Running(sae.to(harvester.lm.device), harvester)
