"""The contexts in which every feature of a dictionary fires, counted and published in its feature store."""

from __future__ import annotations

from typing import final

from feature_store.pointer import read_pointer
from sae.pipeline.stage import DictionaryStage, Run
from sae.pipeline.stages.prepare import Prepare
from sae.publish import dictionary
from sae.publish.index import index


@final
class Index(DictionaryStage):
    """A context generation in the dictionary's store."""

    title = "index"
    needs = (Prepare,)
    workers = "all"

    def done(self, run: Run) -> bool:
        """Whether a context generation is published."""
        return "contexts" in read_pointer(self.dictionary / "store")

    def work(self, run: Run) -> None:
        """Encodes the text and counts; processes share both."""
        config, sources = run.config, run.prepared
        sae, card = run.sae(self.dictionary), dictionary.read_card(self.dictionary)

        with run.screen.progress("index", config.train.tokens) as progress:
            index(
                sae,
                sources.train,
                sources.lm,
                config.index,
                seed=config.seed,
                folder=self.dictionary,
                scratch=run.folder / "codes" / self.dictionary.name,
                facts={"weights_sha256": card.weights_sha256, "hook": str(sae.config.hook)},
                progress=progress,
            )
