"""Whether decoder rows are themselves sparse sums of fewer directions: a dictionary of the dictionary."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from sae.architectures import Batch, build
from sae.architectures.batch_topk import BatchTopKConfig
from sae.evaluation.measure import Measure
from sae.evaluation.subject import Subject
from sae.foundation.metrics import FvuMeter

STEPS, BATCH, K, SHARE, LR = 1500, 512, 4, 4, 1e-3


class MetaStructure(Measure):
    """Explained variance of decoder rows under a BatchTopK dictionary of a quarter of the width, 4 latents a row.

    After SAEBench's meta-SAE evaluation (Leask et al. 2025, arXiv 2502.04878); weights only.
    """

    order = 20
    meanings: ClassVar[dict[str, str]] = {
        "meta_structure.explained_variance": "1 - fvu of decoder rows under a meta-dictionary: high means latents are "
        "composed of shared parts",
        "meta_structure.random_rows": "the same for random unit rows, the baseline",
    }

    def applies(self, subject: Subject) -> bool:
        """for dictionaries that write one hook point: rows of several are in several units"""
        return len(subject.sae.config.writes) == 1

    def measure(self, subject: Subject) -> dict[str, Any]:
        """See `meanings`."""
        rows = subject.sae.W_dec.detach().float()
        generator = subject.generator()
        random = torch.nn.functional.normalize(torch.randn(rows.shape, generator=generator), dim=1).to(rows.device)
        explained = [1 - self._fvu(subject, r, index) for index, r in enumerate((rows, random))]
        return {"meta_structure": {"explained_variance": explained[0], "random_rows": explained[1]}}

    def _fvu(self, subject: Subject, rows: torch.Tensor, part: int) -> float:
        width = max(K, len(rows) // SHARE)
        config = BatchTopKConfig(
            name="meta", hook=subject.sae.config.hook, d_sae=width, k=K, k_aux=32, dead_after_tokens=20_000
        )
        generator = subject.generator()
        meta = build(config, rows.shape[1])
        meta.initialise(generator, rows.mean(0).cpu())
        meta.to(rows.device)
        variance = (rows - rows.mean(0)).square().sum(1).mean()
        optimiser = torch.optim.Adam(meta.parameters(), lr=LR)

        for step in range(STEPS):
            picked = rows[torch.randint(len(rows), (min(BATCH, len(rows)),), generator=generator).to(rows.device)]
            losses = meta.losses(Batch(picked, picked), variance)
            optimiser.zero_grad()
            losses.total.backward()
            meta.project_decoder_gradient()
            optimiser.step()
            meta.normalise_decoder()
            meta.count_firings(losses.training_pass.encoding)
            meta.observe(losses.training_pass)
            if step % 50 == 49:
                subject.progress.update(part * STEPS + step + 1, 2 * STEPS)

        meter = FvuMeter(rows.shape[1], rows.device)
        with torch.no_grad():
            meter.add(rows, meta(rows))  # over the whole batch, as in training

        return meter.value()
