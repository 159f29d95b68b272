"""Whether an opened dictionary fits the model: its figures on a few thousand tokens, before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import final

from jaxtyping import Float
from torch import Tensor

from sae.architectures import Batch, SparseAutoencoder
from sae.architectures.settings import batch_of
from sae.errors import ArtefactError
from sae.evaluation.evaluate import subject_of
from sae.evaluation.fit import BETTER, Fit, Reading, fit_of, readings_of
from sae.evaluation.measures.splice import Splice
from sae.foundation.files import write_json
from sae.foundation.screen import Progress
from sae.model.hookpoints import Channel, HookPoint, find_places
from sae.pipeline.stage import DictionaryStage, Run
from sae.pipeline.stages.prepare import Prepare
from sae.publish.controls import CHECK_FILE
from sae.stream.harvest import Harvester

TOKENS = 4096  # that the fit is measured on
SPLICE_TOKENS = 1024
FAR = 3.0  # times the l0 that the release states, either way


@final
@dataclass(frozen=True)
class Check(DictionaryStage):
    """check.json: fvu, l0 and loss recovered on the text.

    A dictionary that explains next to nothing is refused with what would explain more: another hook point, or its input
    scaled, shifted or normalised; `accept_misfit` goes on.
    """

    title = "check"
    needs = (Prepare,)

    def done(self, run: Run) -> bool:
        """Whether the figures are there."""
        return (self.dictionary / CHECK_FILE).exists()

    def work(self, run: Run) -> None:
        """See the class."""
        sae, opened = run.sae(self.dictionary), run.config.opened
        assert opened is not None, "a run without `opened` has no stage Check"
        with run.screen.progress(self.title, 1, "contexts") as progress:
            batch = batch_of(sae.config, _rows(run, run.prepared.train.harvester))
            fit = fit_of(sae, batch)
            if not fit.is_good:
                advice = _advice(fit, readings_of(sae, batch), _elsewhere(run, sae))
                self._tell_misfit(run, sae, fit, progress, advice=advice)

            said = opened.said_l0
            if said and not said / FAR <= fit.l0 <= said * FAR:
                progress.say(
                    f"{self.dictionary.name}: {fit.l0:.1f} latents per token fire on this text, its release states {said:g}"
                )
            recovered = self._loss_recovered(run, sae, progress)
            progress.say(f"{self.dictionary.name}: fvu {fit.fvu:.3f}, l0 {fit.l0:.1f}, loss recovered {recovered:.3f}")
            write_json(
                self.dictionary / CHECK_FILE,
                {"fvu": fit.fvu, "l0": fit.l0, "said_l0": said, "loss_recovered": recovered, "tokens": TOKENS},
            )

    def _loss_recovered(self, run: Run, sae: SparseAutoencoder, progress: Progress) -> float:
        """How much of the loss of mean ablation the reconstruction saves, on the first held-out tokens."""
        subject = subject_of(
            sae,
            run.prepared.held_out,
            run.config.evaluate,
            folder=self.dictionary,
            seed=run.config.seed,
            progress=progress,
        )
        return Splice().measure(replace(subject, splice_tokens=SPLICE_TOKENS))["loss_recovered"]["mean"]

    def _tell_misfit(self, run: Run, sae: SparseAutoencoder, fit: Fit, progress: Progress, *, advice: str) -> None:
        """Says, or raises `ArtefactError`, that the dictionary does not fit, and what would fit better."""
        hooks = ", ".join(map(str, dict.fromkeys((*sae.config.reads, *sae.config.writes))))
        said = (
            f"{self.dictionary.name}: on {run.prepared.lm.name} at {hooks} it has fvu {fit.fvu:.3f} (1 is no better than "
            f"the mean), l0 {fit.l0:.1f}. {advice}."
        )
        if run.config.opened is None or not run.config.opened.accept_misfit:
            raise ArtefactError(f"{said} Nothing was indexed; --accept-misfit goes on.")
        progress.say(said)


def _advice(fit: Fit, readings: Iterable[Reading], elsewhere: list[tuple[HookPoint, Fit]]) -> str:
    """What would explain more than half as much again, the best first."""
    trials = [(reading.words, reading.fit) for reading in readings]
    trials += [(f"--hook {hook}", other) for hook, other in elsewhere]
    better = sorted((other.fvu, words) for words, other in trials if other.fvu < BETTER * fit.fvu)
    if not better:
        return "No scale, shift or nearby hook point explains more: it is of another model, or its weights are damaged"
    return "It explains more with " + "; ".join(f"{words}: fvu {fvu:.3f}" for fvu, words in better[:4])


def _rows(run: Run, harvester: Harvester) -> dict[Channel, Float[Tensor, "rows _width"]]:
    """The activations of the first contexts of the text, without the positions that are left out."""
    contexts = run.prepared.train.contexts
    n = max(1, min(contexts.n_contexts, TOKENS // contexts.ctx_len))
    harvested = harvester.harvest(contexts.ids[:n], contexts.documents[:n])
    return {channel: x[harvested.keep] for channel, x in harvested.x.items()}


def _elsewhere(run: Run, sae: SparseAutoencoder) -> list[tuple[HookPoint, Fit]]:
    """The fit at other hook points of the same width, in the same block and the two beside it."""
    config, lm = sae.config, run.prepared.lm
    if config.reads != config.writes or len(config.reads) > 1:
        return []

    layers = [layer for layer in (config.hook.layer + step for step in (0, -1, 1)) if layer in lm.blocks.running]
    hooks = [
        HookPoint(site, layer)
        for layer in layers
        for site, place in find_places(lm, layer).items()
        if place.width == sae.d_in and HookPoint(site, layer) != config.hook
    ]
    harvester = Harvester(lm, tuple(map(Channel, hooks)), run.config.harvest, run.config.text.packing)
    fits = []
    for channel, rows in _rows(run, harvester).items():
        x = rows.float()
        fits.append((channel.hook, fit_of(sae, Batch(x, x))))
    return fits
