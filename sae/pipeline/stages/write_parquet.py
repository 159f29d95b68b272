"""Writes contexts.parquet: the contexts of all features in one file, for analysts and for download."""

from __future__ import annotations

from contextlib import closing
from typing import final

from feature_store.store import Store
from sae.pipeline.stage import DictionaryStage, Run
from sae.pipeline.stages.index import Index
from sae.publish import parquet


@final
class WriteParquet(DictionaryStage):
    """Writes contexts.parquet."""

    title = "export"
    needs = (Index,)

    def done(self, run: Run) -> bool:
        """Whether the file is there."""
        return (self.dictionary / "contexts.parquet").exists()

    def work(self, run: Run) -> None:
        """Writes it from the store."""
        with run.screen.progress("export", 1, "dictionary"), closing(Store(self.dictionary / "store")) as store:
            parquet.write_contexts(self.dictionary / "contexts.parquet", store)
