"""What every measure reads: a dictionary and the held-out stream that training never sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from sae.architectures import Batch, SparseAutoencoder
from sae.architectures.settings import batch_of
from sae.foundation.screen import Progress
from sae.model.language_model import LanguageModel
from sae.stream.activations import Activations

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
    progress: Progress
    against: tuple[SparseAutoencoder, ...] = ()

    @property
    def lm(self) -> LanguageModel:
        return self.held_out.harvester.lm

    @property
    def device(self) -> torch.device:
        return self.sae.b_dec.device

    def batches(self, max_rows: int | None = None) -> Iterator[Batch]:
        """Held-out rows in the language model's own units; about `max_rows` of them at most."""
        return (batch for batch, _ in self.placed_batches(max_rows))

    def placed_batches(self, max_rows: int | None = None) -> Iterator[tuple[Batch, Int[np.ndarray, " rows"]]]:
        """The same with the places of the rows among the held-out tokens."""
        n_rows = 0
        for g in range(self.held_out.n_segments):
            segment = self.held_out.segment(g)
            for start in range(0, len(segment.positions), BATCH_ROWS):
                if max_rows is not None and n_rows >= max_rows:
                    return
                part = {c: rows[start : start + BATCH_ROWS] for c, rows in segment.x.items()}
                batch = batch_of(self.sae.config, part)
                n_rows += len(batch.x)
                yield batch, segment.positions[start : start + BATCH_ROWS].numpy()

    def generator(self) -> torch.Generator:
        """A random generator with the run's seed."""
        return torch.Generator().manual_seed(self.seed)
