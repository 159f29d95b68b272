"""How the features of a dictionary correspond to those of another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from feature_store.results.comparison import FOLDER
from sae.errors import ConfigError
from sae.evaluation.comparison import Dictionary, compare, rows_of
from sae.pipeline.stage import DictionaryStage, Run
from sae.pipeline.stages.prepare import Prepare
from sae.publish import dictionary


@final
@dataclass(frozen=True)
class Compare(DictionaryStage):
    """comparisons/ID/comparison.json in the dictionary's folder; `tokens` of held-out text are read, 0: none."""

    title = "compare"
    other: Path
    twin: Path | None = None
    tokens: int = 0

    def needed(self) -> list[Prepare]:
        """The model and its text are part of the run, which `sae compare` prepares."""
        return []

    def done(self, run: Run) -> bool:
        """Never: two folders say nothing of an earlier comparison."""
        return False

    def work(self, run: Run) -> None:
        """See the class."""
        one, other = (self._opened(run, folder) for folder in (self.dictionary, self.other))
        twin = self._opened(run, self.twin) if self.twin else None
        for against in filter(None, (other, twin)):
            if against.sae.d_out != one.sae.d_out:
                raise ConfigError(
                    f"{against.id} writes {against.sae.d_out} numbers, {one.id} {one.sae.d_out}: their directions cannot be "
                    "compared. Give dictionaries of one model and of sites of one width."
                )
        widest = max(one.sae.d_sae, other.sae.d_sae)
        rows = rows_of(run.prepared.held_out, self.tokens, widest) if self.tokens else iter(())
        seed = run.config.seed if self.tokens else 0
        folder = self.dictionary / FOLDER / other.id
        folder.mkdir(parents=True, exist_ok=True)
        compare(one, other, rows, twin=twin, seed=seed).write(folder)

    def _opened(self, run: Run, folder: Path) -> Dictionary:
        card = dictionary.read_card(folder)
        sae = dictionary.load(folder)
        if self.tokens:
            sae = sae.to(run.prepared.lm.device)
        return Dictionary(f"{card.run}.{card.name}", card.weights_sha256, sae.eval())
