"""The step where every process has the whole dictionary and a part of every batch: gradients are summed over processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae.architectures.base import SparseAutoencoder
from sae.foundation.distributed import Group
from sae.kernels.step_parts import Adam, More, Rows
from sae.training.fused_step import FusedStep


class ReplicaStep(FusedStep):
    """One update on the rows of all processes; equals that of one process on the same rows but for the order of sums.

    Every process sums the gradients of all rows for its own part of the latents (a reduce-scatter), updates these alone, and
    gets the others' new weights from them (an all-gather): moments and Adam's work are divided by the number of processes,
    as in ZeRO's first stage (Rajbhandari et al. 2020, arXiv 1910.02054).
    """

    def __init__(self, sae: SparseAutoencoder, optimiser: torch.optim.Adam, group: Group, moments_in: str = "float32"):
        self.part = group.part(sae.d_sae)
        super().__init__(sae, optimiser, group, moments_in)

    @staticmethod
    def fits(sae: SparseAutoencoder, group: Group | None = None) -> bool:
        """As `FusedStep.fits`, where every token keeps as many latents and the loss is one of errors alone."""
        if not FusedStep.fits(sae) or sae.ragged or sae.loss_is_of == "code":
            return False
        return group is None or sae.d_sae % group.size == 0

    def own(self, weights: Tensor, name: str) -> Tensor:
        """The part of a parameter that this process updates: its latents of both tables, all of a vector."""
        if weights.ndim == 1:
            return weights
        return weights[:, self.part] if name == "W_enc" else weights[self.part]

    def complete(self) -> None:
        """Brings the weights that other processes have updated."""
        self.group.complete(self.sae.W_enc.data.T)
        self.group.complete(self.sae.W_dec.data)

    def _table(self, parameter: Tensor, number: int) -> Rows:
        rows = super()._table(parameter, number)
        return rows._replace(rounded=rows.rounded[self.part])

    def _over_tokens(self, *sums: Tensor) -> tuple[Tensor, ...]:
        return self.group.sum(torch.cat(sums)).split([len(s) for s in sums])

    def _over_latents(self, gradient: Tensor, aux: Tensor) -> tuple[Tensor, Tensor]:
        self.group.least(self.sae.tokens_since_fired)  # 0 where it fired in any process
        both = self.group.sum(torch.cat([gradient, aux[None]]))
        return both[:-1], both[-1]

    def _update_rows(self, sums: tuple[Any, ...], rows: tuple[Rows, Rows], adam: Adam, more: More | None) -> None:
        gradients = self.kernels.row_gradients(*sums, more, self.prefixes)
        self.kernels.apply_rows(*map(self.group.share_of_sum, gradients), *rows, adam)
        for table in {t.data_ptr(): t for t in (*self._rounded, *self._tables)}.values():
            self.group.complete(table)
