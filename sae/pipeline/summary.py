"""summary.json: the figures of a finished run."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from feature_store.dictionary_files import Facts, JsonFile, LabelSummary, Metrics
from sae.pipeline import efficiency
from sae.pipeline.efficiency import Rate
from sae.pipeline.stage import Run
from sae.publish import dictionary

FILE_NAME = "summary.json"


class DictionaryFigures(Facts):
    """What a run says of one dictionary."""

    folder: str
    metrics: Metrics
    labels: LabelSummary | None = None


class CacheTraffic(Facts):
    """Positions that a run read from its cache of activations, and wrote to it."""

    read: int
    written: int


class RunSummary(JsonFile):
    """A run's dictionaries, and the seconds, rates and memory that its stages took."""

    file_name: ClassVar[str] = FILE_NAME
    kind_of_folder: ClassVar[str] = "the folder of a finished run, such as runs/x"
    current_version: ClassVar[int] = 1

    format_version: int = 1
    run: str
    folder: str
    dictionaries: dict[str, DictionaryFigures]
    rates: dict[str, Rate] = Field(default_factory=dict)
    cache: CacheTraffic | None = None
    peak_bytes: dict[str, int] = Field(default_factory=dict)
    seconds: dict[str, float]
    seconds_total: float


def summary_of(run: Run) -> RunSummary:
    """The summary of a run whose dictionaries are finished."""
    config, sources, seconds = run.config, run.prepared, dict(run.screen.seconds)
    folders = config.dictionary_folders
    n_activations = sum(dictionary.read_card(folder).training.activations_seen or 0 for folder in folders.values())
    rates = efficiency.rates(config, sources, seconds, n_activations, n_processes=run.processes.world_size)

    facts: dict[str, Any] = {}
    if sources.train.cache is not None:
        traffic = sources.train.cache.traffic
        facts["cache"] = CacheTraffic(read=traffic.read, written=traffic.written)

    return RunSummary(
        run=config.name,
        folder=str(run.folder),
        dictionaries={
            name: DictionaryFigures(
                folder=str(folder),
                metrics=Metrics.read(folder),
                labels=LabelSummary.read(folder) if config.index.build else None,
            )
            for name, folder in folders.items()
        },
        rates=rates,
        peak_bytes=efficiency.peak_memory(sources.lm),
        seconds={name: round(value, 1) for name, value in seconds.items()},
        seconds_total=round(sum(seconds.values()), 1),
        **facts,
    )
