"""Edges between two dictionaries of one model; see `sae.apply.feeding`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch

from feature_store.results.findings import Finding
from sae.apply.feeding import Edges, check_pair, edges
from sae.apply.finding import finding_folder, table, write_finding
from sae.architectures import SparseAutoencoder
from sae.architectures.settings import batch_of
from sae.pipeline.stage import Run, Stage
from sae.pipeline.stages.prepare import Prepare

COUNTED = 16_384  # tokens on which it is counted how often latents fire


@final
@dataclass(frozen=True)
class Feed(Stage):
    """The strongest edges into the latents of `later` that fire most often; `findings` are filled in."""

    earlier: Path
    later: Path
    features: int
    contexts: int
    most: int
    findings: list[Finding] = field(default_factory=list)

    title = "feeds"
    needs = (Prepare,)

    def done(self, run: Run) -> bool:
        """Never: who asks for edges wants them."""
        return False

    def work(self, run: Run) -> None:
        """See the class."""
        held_out = run.prepared.held_out
        earlier, later = run.sae(self.earlier), run.sae(self.later)
        check_pair(held_out.harvester, earlier, later)
        targets = _most_frequent(run, later, self.features)
        n = min(self.contexts, held_out.contexts.n_contexts)
        with run.screen.progress(self.title, n, "contexts") as progress:
            result = edges(
                held_out.harvester,
                earlier,
                later,
                held_out.contexts.ids[:n],
                targets=targets,
                most=self.most,
                tell=progress.update,
            )
        rows = _rows(result)
        self.findings.append(
            self._write(self.earlier, f"feeds-{self.later.name}", sorted(r[1::-1] + r[2:] for r in rows))
        )
        self.findings.append(self._write(self.later, f"fed-by-{self.earlier.name}", rows))

    def _write(self, folder: Path, name: str, rows: list[list[float]]) -> Finding:
        """The finding of one side: its own latent, the other side's, weight and share."""
        is_later = folder == self.later
        finding_folder(folder, name)
        other = (self.earlier if is_later else self.later).name
        columns = {"feature": "feature", f"of {other}": "number", "weight": "number", "share of all": "number"}
        way = "is fed by" if is_later else "feeds"
        return write_finding(
            folder, name, system="feeds", title=f"What {'feeds' if is_later else 'is fed by'} {folder.name}: {other}",
            summary=f"{len(rows)} edges between {self.earlier.name} and {self.later.name}, the strongest of {self.features} later latents.",
            settings={"earlier": self.earlier.name, "later": self.later.name, "contexts": self.contexts},
            figures=[], tables=[table(f"{folder.name} {way} {other}", columns, rows)],
        )  # fmt: skip


def _most_frequent(run: Run, sae: SparseAutoencoder, n: int) -> list[int]:
    """The latents that fire on most of some held-out tokens; of equal ones the first."""
    counts, n_read = torch.zeros(sae.d_sae, dtype=torch.int64), 0
    for number in range(run.prepared.held_out.n_segments):
        segment = run.prepared.held_out.segment(number)
        batch = batch_of(sae.config, {channel: rows[:COUNTED] for channel, rows in segment.x.items()})
        code = sae.encode(batch.x.to(sae.b_dec.device))
        counts += torch.bincount(code.top_indices[code.top_acts > 0].cpu(), minlength=sae.d_sae)
        n_read += len(batch.x)
        if n_read >= COUNTED:
            break
    return counts.argsort(descending=True, stable=True)[:n].tolist()


def _rows(result: Edges) -> list[list[float]]:
    """A row per edge: later latent, earlier latent, weight, share."""
    rows = []
    for number, target in enumerate(result.targets.tolist()):
        for source, weight, share in zip(*(part[number].tolist() for part in result[1:]), strict=True):
            if weight > 0:
                rows.append([target, source, weight, share])
    return rows
