"""Factors of a run's activations; see `sae.apply.factors`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from feature_store.dictionary_files import Provenance
from feature_store.results.findings import Finding
from sae.apply.factors.dictionary import Fitted, as_dictionary, parents_of
from sae.apply.factors.factorisation import Factors, StreamingFit, factorise_stream
from sae.apply.finding import figure, table, write_finding
from sae.errors import ArtefactError
from sae.foundation.files import dictionaries_in, writing
from sae.foundation.tensor_files import save_tensors
from sae.model.hookpoints import Channel, HookPoint
from sae.pipeline.stage import Run, Stage
from sae.pipeline.stages.prepare import Prepare
from sae.publish.dictionary import read_card

BATCH, NEURONS = 4096, 8
WRITTEN_EVERY = 32_768  # tokens


@final
@dataclass(frozen=True)
class Factor(Stage):
    """Factorises `tokens` of the training stream at one hook point; `factors` and `fitted` are filled in."""

    hook: HookPoint
    name: str
    rank: int
    share: float
    tokens: int
    passes: int
    seed: int
    factors: list[Factors] = field(default_factory=list)
    fitted: list[Fitted] = field(default_factory=list)

    title = "factor"
    needs = (Prepare,)

    def done(self, run: Run) -> bool:
        """Never: who asks for factors wants them."""
        return False

    def work(self, run: Run) -> None:
        """See the class."""
        total = min(self.tokens, run.prepared.train.contexts.n_contexts * run.config.text.ctx_len)
        fit, path = StreamingFit(self.rank, self.share, passes=self.passes, seed=self.seed), self.state_file(run)
        if path.exists():
            fit.resume(_read(path, run.prepared.lm.device))
        with run.screen.progress(self.title, total * self.passes) as progress:
            last_written = fit.n_seen

            def tell(fit: StreamingFit) -> None:
                nonlocal last_written
                progress.update(fit.n_seen, fvu=fit.loss)
                if fit.n_seen >= last_written + WRITTEN_EVERY:
                    _write(path, fit)
                    last_written = fit.n_seen

            factors = factorise_stream(lambda: self._batches(run), fit, tell=tell)
        self.factors.append(factors)
        self.fitted.append(as_dictionary(factors, lambda: self._batches(run), name=self.name, hook=self.hook))

    def state_file(self, run: Run) -> Path:
        """A file in the run's folder that says how far a fit of these settings is; it goes when the dictionary is published."""
        settings = (
            f"{self.hook} {self.rank} {self.share} {self.tokens} {self.passes} {self.seed} {run.prepared.lm.sha256}"
        )
        return run.folder / f".factor-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.safetensors"

    def forget(self, run: Run) -> None:
        """Removes what a stopped fit would go on from."""
        self.state_file(run).unlink(missing_ok=True)

    def _batches(self, run: Run) -> Iterator[Tensor]:
        """Rows of the training stream in batches, up to `tokens` of them."""
        train, n_read = run.prepared.train, 0
        for number in range(train.n_segments):
            for rows in train.segment(number).x[Channel(self.hook)].split(BATCH):
                if n_read >= self.tokens:
                    return
                part = rows[: self.tokens - n_read].to(device=run.prepared.lm.device, dtype=torch.float32)
                n_read += len(part)
                yield part

    def provenance(self, run: Run) -> Provenance:
        """That of the run's dictionaries, without their training."""
        card = read_card(dictionaries_in(run.folder)[0])
        same = {name: getattr(card, name) for name in ("model", "tokenizer", "corpus", "text", "config_sha256")}
        return Provenance(run=run.config.name, seed=self.seed, **same)

    def write_finding(self, folder: Path) -> Finding:
        """What the factors are, as a finding of the new dictionary."""
        (factors,), (fitted,) = self.factors, self.fitted
        rows, parents = factors.rows, parents_of(factors.rows, self.seed)
        neurons = rows.abs().topk(min(NEURONS, rows.shape[1]), dim=1).indices.tolist()
        order = factors.energy.argsort(descending=True).tolist()
        return write_finding(
            folder, "factors", system="factor", title=f"{self.rank} factors of {self.hook}",
            summary=f"Sums of {self.rank} factors leave {factors.losses[-1]:.1%} of the squares of {self.tokens:,} activations.",
            settings={"hook": str(self.hook), "rank": self.rank, "share": self.share, "tokens": self.tokens,
                      "passes": self.passes, "seed": self.seed},
            figures=[
                figure("left of the squares", factors.losses[-1], "||X - G F||^2 / ||X||^2 with the best weights, last pass"),
                figure("left by the encoder", fitted.unexplained, "share of the weights' variance that the linear encoder misses"),
            ],
            tables=[
                table(
                    "Factors, by what they carry",
                    {"feature": "feature", "share of squares": "number", "parent": "number", "strongest neurons": "text"},
                    [[f, float(factors.energy[f]), parents[f], ", ".join(map(str, neurons[f]))] for f in order],
                )
            ],
        )  # fmt: skip


def _write(path: Path, fit: StreamingFit) -> None:
    with writing(path) as temporary:
        save_tensors(temporary, {name: tensor for name, tensor in fit.state().items()})


def _read(path: Path, device: torch.device) -> dict[str, Tensor]:
    """The state of a fit; raises `ArtefactError` for a damaged file."""
    try:
        state = load_file(path)
        return {name: tensor if name == "numbers" else tensor.to(device) for name, tensor in state.items()}
    except SafetensorError as error:
        raise ArtefactError(f"{path}: damaged ({error}). Remove it; the factors are then fit from the start.") from None
