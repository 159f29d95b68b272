"""How good a dictionary is on a text that people bring."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from sae.evaluation.evaluate import evaluate_on_text, subject_of
from sae.pipeline.stage import DictionaryStage, Run
from sae.pipeline.stages.prepare import Prepare
from sae.stream.activations import Activations
from sae.text import tokens
from sae.text.corpus import TextSource


@final
@dataclass(frozen=True)
class EvaluateOnText(DictionaryStage):
    """The main figures of one dictionary on another text, under `name` in metrics.json and report.md.

    `scratch` holds the tokens while they are needed; `figures` are filled in.
    """

    source: TextSource
    name: str
    scratch: Path
    figures: dict[str, Any] = field(default_factory=dict)

    title = "evaluate on text"
    needs = (Prepare,)

    def done(self, run: Run) -> bool:
        """Never: who names a text wants it measured."""
        return False

    def work(self, run: Run) -> None:
        """See the class."""
        config, sources, folder = run.config, run.prepared, self.dictionary
        text = config.text.model_copy(update={"sources": (self.source,)})
        with run.screen.progress(self.title, 1, "contexts") as progress:
            contexts = tokens.read_whole(
                text,
                sources.lm.tokenizer,
                prepend_bos=sources.lm.prepend_bos,
                n_tokens=text.held_out_tokens,
                folder=self.scratch,
                progress=progress,
            )
            size = min(sources.train.segment_contexts, contexts.n_contexts)
            stream = Activations(sources.train.harvester, contexts, size, folder=None, training=sources.train)
            subject = subject_of(
                run.sae(folder), stream, config.evaluate, folder=folder, seed=config.seed, progress=progress
            )
            self.figures.update(evaluate_on_text(subject, self.name, f"{config.name} / {folder.name}"))
