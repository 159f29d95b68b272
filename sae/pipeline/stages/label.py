"""Explanations of the features, and held-out scores of the explanations."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import final

from feature_store.pointer import read_pointer
from feature_store.store import Store, StoreError
from sae.errors import ArtefactError
from sae.foundation.distributed import Processes
from sae.interpret.helpers import helped, processes_for
from sae.interpret.interpret import InterpretConfig, interpret
from sae.pipeline.stage import DictionaryStage, Run
from sae.pipeline.stages.index import Index


@final
@dataclass(frozen=True)
class Label(DictionaryStage):
    """An explanation generation in the dictionary's store, and labels.json.

    Without `settings`, those of the config are used, once. With them, the features (all, or a range of them) are
    labelled in any case, and other features keep what they have.
    """

    title = "label"
    needs = (Index,)
    workers = "all"
    settings: InterpretConfig | None = None
    features: range | None = None
    with_groups: bool = True  # concepts and the map, which need all features

    def done(self, run: Run) -> bool:
        """Whether explanations are published."""
        is_published = "explanations" in read_pointer(self.dictionary / "store")
        return self.settings is None and is_published and (self.dictionary / "labels.json").exists()

    def work(self, run: Run) -> None:
        """Explains and scores; processes share the features."""
        settings = self.settings or run.config.interpret
        with run.screen.progress("label", 1, "features") as progress:
            # Few scorers run the model, so it is loaded when the first of them asks for it.
            live_dictionary = lru_cache(lambda: run.live_dictionary(self.dictionary))
            try:
                with self._processes(run, settings) as processes:
                    summary = interpret(
                        self.dictionary,
                        settings,
                        live_dictionary,
                        features=self.features,
                        with_groups=self.with_groups,
                        processes=processes,
                        progress=progress,
                    )
            except StoreError as error:
                raise ArtefactError(str(error)) from None

        if run.processes.is_first:
            summary.write(self.dictionary)

    def _processes(self, run: Run, settings: InterpretConfig) -> AbstractContextManager[Processes]:
        """Those of the run, or of this machine where the run has one and there is enough to label."""
        if run.processes.world_size > 1:
            return nullcontext(run.processes)
        with closing(Store(self.dictionary / "store")) as store:
            n = processes_for(settings, store.n_features if self.features is None else len(self.features))
        if n == 1:
            return nullcontext(run.processes)
        return helped(self.dictionary, settings, n, features=self.features, with_groups=self.with_groups)
