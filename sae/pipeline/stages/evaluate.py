"""How good a dictionary is on held-out text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import final

from feature_store.dictionary_files import Metrics
from feature_store.pointer import drop_all
from sae.evaluation import plots
from sae.evaluation.evaluate import evaluate, subject_of
from sae.foundation.files import write_bytes
from sae.pipeline.stage import DictionaryStage, Run
from sae.pipeline.stages.index import text_of
from sae.pipeline.stages.prepare import Prepare
from sae.publish import dictionary


@final
@dataclass(frozen=True)
class Evaluate(DictionaryStage):
    """metrics.json, pictures and report.md of one dictionary.

    Without `measures`, the measures of the config run once. With them, they run in any case and their figures join the
    earlier ones. `against` are dictionaries to compare with.
    """

    title = "evaluate"
    needs = (Prepare,)
    measures: tuple[str, ...] | None = None
    against: tuple[Path, ...] = ()

    def done(self, run: Run) -> bool:
        """Whether the report is written."""
        return self.measures is None and (self.dictionary / "report.md").exists()

    def work(self, run: Run) -> None:
        """See the class."""
        config, folder = run.config, self.dictionary
        sae, title = run.sae(folder), f"{config.name} / {folder.name}"
        if self.measures is None:
            self._begin(run, title)

        with run.screen.progress("evaluate", 1, "contexts") as progress:
            others = tuple(dictionary.load(other) for other in self.against)
            subject = subject_of(
                sae,
                run.prepared.held_out,
                config.evaluate,
                folder=folder,
                seed=config.seed,
                progress=progress,
                against=others,
            )
            evaluate(subject, self.measures or config.evaluate.measures, title)

    def _begin(self, run: Run, title: str) -> None:
        """Puts the training curve beside the dictionary and starts metrics.json."""
        folder = self.dictionary
        if run.config.opened is None:
            drop_all(folder / "store")  # of an earlier dictionary in this folder
        lines = run.log.read(folder.name) if run.log else []
        write_bytes(folder / "training.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
        plots.curves(lines, title, folder / "curves.png")
        card = dictionary.read_card(folder)
        text = f"held-out documents of {text_of(run.config)}"
        text += ", which training never saw" if run.config.opened is None else ", on which the dictionary was opened"
        Metrics(text=text, dead=card.training.dead_at_end, d_sae=run.sae(folder).d_sae).write(folder)
