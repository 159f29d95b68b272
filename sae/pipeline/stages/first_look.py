"""Something to see after a minute: the first tokens of the text indexed and labelled, while the whole takes longer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from feature_store.pointer import read_pointer
from sae.pipeline.stage import DictionaryStage, Run
from sae.pipeline.stages.index import FIRST_LOOK, index_dictionary, text_of
from sae.pipeline.stages.label import Label
from sae.pipeline.stages.prepare import Prepare

LABELLED = 512  # features that are labelled at once; the others have their contexts, and labels with the whole


@final
@dataclass(frozen=True)
class FirstLook(DictionaryStage):
    """A store of the first tokens, without controls; the whole takes its place."""

    title = "first look"
    needs = (Prepare,)
    workers = "all"
    tokens: int = 0

    def done(self, run: Run) -> bool:
        """Whether there is anything to see."""
        return "contexts" in read_pointer(self.dictionary / "store")

    def work(self, run: Run) -> None:
        """Indexes the first tokens."""
        settings = run.config.index.model_copy(update={"tokens": self.tokens, "controls": False})
        index_dictionary(run, self.dictionary, settings, {"text": text_of(run.config), FIRST_LOOK: True})


@final
class FirstLabels(DictionaryStage):
    """Labels of some features of a first look."""

    title = "first labels"
    needs = (FirstLook,)
    workers = "all"

    def done(self, run: Run) -> bool:
        """Whether there are any labels."""
        return "explanations" in read_pointer(self.dictionary / "store")

    def work(self, run: Run) -> None:
        """Labels them."""
        Label(self.dictionary, features=range(LABELLED), with_groups=False).work(run)
