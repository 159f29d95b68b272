"""Metrics of a run: JSON lines always, Weights & Biases if the config says so."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sae.errors import ArtefactError, UnavailableError
from sae.foundation.files import append_line, write_bytes
from sae.foundation.section import Section


class LogConfig(Section):
    """Where metrics go besides the run folder."""

    wandb: Literal["off", "offline", "online"] = Field(
        default="off", description="Weights & Biases: off, offline or online."
    )
    project: str = Field(default="saedex", min_length=1, description="Weights & Biases project.")
    entity: str | None = Field(default=None, description="Weights & Biases team or user; none: your default.")


class MetricsLog:
    """Appends lines to training.jsonl of each dictionary and mirrors them to Weights & Biases if that is on.

    `part` is appended to the name there, if one of several processes logs.
    """

    def __init__(self, config: LogConfig, folder: Path, run_name: str, facts: dict[str, Any], *, part: str = ""):
        self.folder = folder
        self._run = None if config.wandb == "off" else _start_wandb(config, folder, run_name, facts, part=part)

    def path(self, name: str) -> Path:
        """File with the training metrics of one dictionary."""
        return self.folder / f"training-{name}.jsonl"

    def line(self, name: str, values: dict[str, Any], histograms: dict[str, Any]) -> None:
        """One line of figures; `histograms` (name to array) go to Weights & Biases only."""
        append_line(self.path(name), json.dumps(values))
        if self._run is not None:
            import wandb

            pictures = {f"{name}/{key}": wandb.Histogram(array) for key, array in histograms.items()}
            self._run.log({**{f"{name}/{key}": value for key, value in values.items()}, **pictures})

    @property
    def wants_histograms(self) -> bool:
        """Whether histograms are worth computing."""
        return self._run is not None

    def read(self, name: str) -> list[dict[str, Any]]:
        """All lines of one dictionary; raises `ArtefactError` if one is damaged."""
        path = self.path(name)
        try:
            return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
        except ValueError as error:
            raise ArtefactError(f"{path}: a line is not valid JSON ({error}); the file is damaged.") from None

    def finish(self, name_to_metrics: dict[str, dict[str, Any]], pictures: dict[str, Path]) -> None:
        """Sends the final metrics and pictures."""
        if self._run is not None:
            import wandb

            for name, metrics in name_to_metrics.items():
                self._run.summary.update({f"{name}/{k}": v for k, v in metrics.items() if isinstance(v, int | float)})
            self._run.log({name: wandb.Image(str(path)) for name, path in pictures.items()})

    def close(self) -> None:
        """Waits until everything is sent; nothing can be logged afterwards."""
        if self._run is not None:
            self._run.finish()
            self._run = None


def _start_wandb(config: LogConfig, folder: Path, run_name: str, facts: dict[str, Any], *, part: str) -> Any:
    import wandb

    id_file = folder / f"wandb-run-id{part}.txt"
    run_id = id_file.read_text("utf-8") if id_file.exists() else uuid.uuid4().hex[:8]
    write_bytes(id_file, run_id.encode())

    try:
        return wandb.init(
            project=config.project,
            entity=config.entity,
            name=run_name + part,
            id=run_id,
            resume="allow",
            dir=folder,
            mode="online" if config.wandb == "online" else "offline",
            config={**facts, "run_folder": str(folder)},
            settings=wandb.Settings(silent=True),
        )
    except wandb.Error as error:
        raise UnavailableError(f"log.wandb: {error}. Log in, or set log.wandb to offline or off.") from None
