"""`Run`: what the stages share. `Stage`: one step, and whether it is done. `perform`: passes over what is done, which is
how a killed run resumes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from feature_store.pointer import remove_leftovers
from sae.architectures import SparseAutoencoder
from sae.errors import ConfigError
from sae.foundation.distributed import ALONE, Processes
from sae.foundation.files import owned
from sae.foundation.screen import Screen
from sae.foundation.stop import StopRequest
from sae.interpret.live_dictionary import LiveDictionary
from sae.pipeline.config import RunConfig, config_of_run
from sae.pipeline.run_log import MetricsLog
from sae.pipeline.sources import Sources, check_model_of, harvester_of
from sae.publish import dictionary
from sae.publish.placement import placed
from sae.stream.harvest import Harvester


@dataclass
class Run:
    """Everything that the stages of a run share.

    A command that works on a dictionary outside of a run (`sae eval`, `sae interpret`) makes one too: `folder` is then
    the run whose model and text it borrows, and `settings` is None until something asks for them.
    """

    folder: Path
    screen: Screen
    settings: RunConfig | None = None
    processes: Processes = ALONE
    stop: StopRequest = field(default_factory=StopRequest)
    log: MetricsLog | None = None
    sources: Sources | None = None  # made by the stage `Prepare`
    after: Callable[[Stage], None] | None = None  # told of every stage whose result is there
    _loaded: tuple[Path, SparseAutoencoder] | None = None

    @property
    def config(self) -> RunConfig:
        """The settings of the run; raises `ConfigError` if the folder is not a run."""
        if self.settings is None:
            self.settings = config_of_run(self.folder, "Say which run's model and text to use: --run RUN")
        return self.settings

    @property
    def prepared(self) -> Sources:
        """The model, tokens and activations, once `Prepare` has been performed."""
        assert self.sources is not None, "a stage that reads the sources needs Prepare"
        return self.sources

    def sae(self, folder: Path) -> SparseAutoencoder:
        """The published dictionary in a folder, on the model's device; the last one stays loaded."""
        if self._loaded is None or self._loaded[0] != folder:
            self._loaded = folder, dictionary.load(folder)
        module = self._loaded[1]
        if self.sources is None:
            return module
        check_model_of(folder, self.sources.lm)
        return placed(module, self.sources.lm.device)

    def live_dictionary(self, folder: Path) -> LiveDictionary:
        """A dictionary with the language model; loads the model if `Prepare` has not done so."""
        module = self.sae(folder)
        if self.sources is None:
            quiet = Screen(quiet=True)  # the bar of the stage stays the only one
            harvester = harvester_of(self.config, self.folder, module.config.activations, quiet)
            check_model_of(folder, harvester.lm)
        else:  # one of its own: the harvester of training may also harvest gradients
            lm, config = self.sources.lm, self.config
            harvester = Harvester(lm, module.config.activations, config.harvest, config.text.packing)
        return LiveDictionary(module.to(harvester.lm.device), harvester)


class Stage(ABC):
    """One step from a config to published, labelled dictionaries.

    Its result is on disk (or, for `Prepare`, in `Run.sources`), and `done` looks for it: that is how the same command
    resumes, and how a command can perform a part of the list.
    """

    title: ClassVar[str]
    needs: ClassVar[tuple[type[Stage], ...]] = ()  # stages whose result this one reads
    workers: ClassVar[Literal["first", "all"]] = "first"  # which processes do the work, if a run has several

    @abstractmethod
    def done(self, run: Run) -> bool:
        """Whether the result is there; called in the first process."""

    @abstractmethod
    def work(self, run: Run) -> None:
        """Makes the result."""

    def needed(self) -> Iterable[Stage]:
        """The stages whose result this one reads."""
        return (stage() for stage in self.needs)


@dataclass(frozen=True)
class DictionaryStage(Stage):
    """A stage of one published dictionary."""

    dictionary: Path

    def needed(self) -> Iterable[Stage]:
        """The stages whose result this one reads, for the same dictionary."""
        for stage in self.needs:
            yield stage(self.dictionary) if issubclass(stage, DictionaryStage) else stage()


def perform(stages: Iterable[Stage], run: Run) -> None:
    """Performs the stages in order, passing over those that are done; a requested stop takes effect between two stages."""
    on_first = run.processes.on_first
    for stage in stages:
        # The first process decides, so that all agree on what the disk holds.
        if not on_first(lambda stage=stage: stage.done(run)):
            _perform(stage, run)
            run.stop.check()
        if run.after is not None:
            on_first(lambda stage=stage: run.after(stage) if run.after else None)


def _perform(stage: Stage, run: Run) -> None:
    """Does the work of a stage; raises `ConfigError` if one that it reads has not been done."""
    on_first = run.processes.on_first
    for needed in stage.needed():
        if not on_first(lambda needed=needed: needed.done(run)):
            raise ConfigError(
                f"{stage.title}: {_where(stage)}the stage '{needed.title}' has not been done yet. "
                "Run sae-train with the run's config to its end first."
            )
    with _held(stage, run):
        if stage.workers == "all":
            stage.work(run)
        else:
            on_first(lambda stage=stage: stage.work(run))


@contextmanager
def owned_by_first(folder: Path, processes: Processes) -> Iterator[None]:
    """The first process holds a folder during the block."""
    ownership = owned(folder)
    processes.on_first(ownership.__enter__)
    try:
        yield
    finally:
        if processes.is_first:
            ownership.__exit__(None, None, None)


@contextmanager
def _held(stage: Stage, run: Run) -> Iterator[None]:
    """A stage of a dictionary has its folder to itself, and begins without what a killed one left in the store."""
    if not isinstance(stage, DictionaryStage):
        yield
        return

    folder = stage.dictionary
    with owned_by_first(folder, run.processes):
        for name in run.processes.on_first(lambda: remove_leftovers(folder / "store")):
            run.screen.say(f"{folder / 'store' / name}: left by a run that was stopped while it wrote; removed")
        yield


def _where(stage: Stage) -> str:
    return f"{stage.dictionary}: " if isinstance(stage, DictionaryStage) else ""
