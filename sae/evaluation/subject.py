"""What every measure is given: a dictionary and the held-out stream that training never sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sae.activations import Activations
from sae.architectures import ArchitectureConfig, Batch, SparseAutoencoder
from sae.hookpoints import Channel
from sae.language_model import LanguageModel

BATCH_ROWS = 4096


@dataclass(frozen=True)
class Subject:
    """A dictionary in evaluation mode, its held-out activations, and how much of them to use."""

    sae: SparseAutoencoder
    held_out: Activations
    folder: Path
    splice_tokens: int
    batch_contexts: int
    seed: int
    report: Callable[[int, int], None]
    against: tuple[SparseAutoencoder, ...] = ()

    @property
    def lm(self) -> LanguageModel:
        return self.held_out.harvester.lm

    @property
    def device(self) -> torch.device:
        return self.sae.b_dec.device

    def batches(self, max_rows: int | None = None) -> Iterator[Batch]:
        """Held-out rows in the language model's own units, at most about `max_rows` of them."""
        seen = 0
        for g in range(self.held_out.n_segments):
            segment = self.held_out.segment(g)
            for start in range(0, len(segment.positions), BATCH_ROWS):
                if max_rows is not None and seen >= max_rows:
                    return
                part = {c: rows[start : start + BATCH_ROWS] for c, rows in segment.x.items()}
                batch = batch_of(self.sae.config, part)
                seen += len(batch.x)
                yield batch

    def generator(self) -> torch.Generator:
        """A generator of the run's seed."""
        return torch.Generator().manual_seed(self.seed)


def batch_of(config: ArchitectureConfig, rows: dict[Channel, Tensor]) -> Batch:
    """The rows of every channel put together as a dictionary reads and writes them."""
    x = torch.cat([rows[Channel(hook)] for hook in config.reads], dim=1).float()
    y = x if config.reads == config.writes else torch.cat([rows[Channel(h)] for h in config.writes], dim=1).float()
    wanted = config.gradient
    gradient = rows[wanted].float() if wanted is not None and wanted in rows else None
    return Batch(x, y, gradient)
