"""The contexts in which every feature of a dictionary fires, counted and published in its feature store."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any, final

from feature_store.pointer import read_pointer
from feature_store.store import Store
from sae.pipeline.config import RunConfig
from sae.pipeline.stage import DictionaryStage, Run
from sae.pipeline.stages.prepare import Prepare
from sae.publish import dictionary
from sae.publish.index import IndexConfig, index
from sae.text.corpus import described

FIRST_LOOK = "first_look"  # a fact of a generation that is of the first tokens alone


@final
class Index(DictionaryStage):
    """A context generation in the dictionary's store."""

    title = "index"
    needs = (Prepare,)
    workers = "all"

    def done(self, run: Run) -> bool:
        """Whether a context generation of the whole text is published."""
        store = self.dictionary / "store"
        if "contexts" not in read_pointer(store):
            return False
        with closing(Store(store)) as published:
            return FIRST_LOOK not in published.meta

    def work(self, run: Run) -> None:
        """Encodes the text and counts; processes share both."""
        facts = {}
        if run.config.opened is not None:
            facts["text"] = text_of(run.config)  # its card tells the text of training
            (self.dictionary / "labels.json").unlink(missing_ok=True)  # labels of a first look do not do for the whole
        index_dictionary(run, self.dictionary, run.config.index, facts)


def index_dictionary(run: Run, folder: Path, settings: IndexConfig, facts: dict[str, Any]) -> None:
    """Builds and publishes a context generation of a dictionary; `facts` are kept with it."""
    config, sources = run.config, run.prepared
    sae, card = run.sae(folder), dictionary.read_card(folder)

    with run.screen.progress("index", settings.tokens or config.train.tokens) as progress:
        index(
            sae,
            sources.train,
            sources.lm,
            settings,
            seed=config.seed,
            folder=folder,
            scratch=run.folder / "codes" / folder.name,
            facts={"weights_sha256": card.weights_sha256, "hook": str(sae.config.hook), **facts},
            progress=progress,
            with_pages=FIRST_LOOK not in facts,
        )


def text_of(config: RunConfig) -> str:
    """The text that a dictionary is indexed on, in words."""
    if config.opened is not None:
        return config.opened.text
    return " and ".join(described(source) for source in config.text.sources)
