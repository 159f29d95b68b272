"""The step where every process has a part of the latents and all rows of a batch: no weight ever leaves its process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sae.architectures.base import PADDED, SparseAutoencoder
from sae.architectures.k_largest import KLargest
from sae.foundation.distributed import Group
from sae.kernels.step_parts import Decoded
from sae.training.fused_step import FusedStep


class ShardedStep(FusedStep):
    """One update of a dictionary whose latents are spread over processes, in their order; exact but for the order of sums.

    The k largest of a token are found among the k largest of every process (k numbers a process travel; ties go to the
    smaller latent, as alone), and the sum of the processes' reconstructions travels once. Gao et al. 2024, arXiv 2406.04093,
    section 3.2, spread the latents in the same way.
    """

    def __init__(self, sae: SparseAutoencoder, optimiser: torch.optim.Adam, group: Group, moments_in: str = "float32"):
        super().__init__(sae, optimiser, group, moments_in)
        self.ragged = True

    @staticmethod
    def fits(sae: SparseAutoencoder) -> bool:
        """Whether these latents can be trained beside those of other processes: TopK on a device that `FusedStep` fits."""
        return FusedStep.fits(sae) and isinstance(sae, KLargest) and sae.loss_is_of == "error"

    @property
    def _latents_of(self) -> Group:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.group

    def _among_all(self, indices: Tensor, values: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The selected latents that are among the k largest of all processes; -1 and `PADDED` in the others' places."""
        k = self.sae.config.k
        everywhere = self.group.beside(keys.float())
        least = everywhere.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
        over, ties = everywhere > least, everywhere == least
        spare = k - over.sum(1, keepdim=True)
        kept = over | (ties & (ties.cumsum(1) <= spare))
        width = keys.shape[1]
        own = kept[:, self.group.rank * width : (self.group.rank + 1) * width]
        return torch.where(own, indices, -1), values.masked_fill(~own, PADDED)

    def _decode(self, values: Tensor, *arguments: Any) -> Decoded:
        kept, table, b_dec, y, *more = arguments
        own = self.kernels.decode(values, *arguments, error_dtype=torch.float32).error[0]  # own part + b_dec - y
        error = self.group.sum(own.clone())  # all parts, with b_dec - y once for every process
        error.add_(y - b_dec, alpha=self.group.size - 1)
        target = own.add_(y).sub_(error)  # with which the own part has the error of all
        return self.kernels.decode(values, kept, table, b_dec, target, *more)

    def _over_tokens(self, *sums: Tensor) -> tuple[Tensor, ...]:
        """Every process has them all, but for the number of activations, in sums of another order: their mean serves all."""
        figures = sums[0].clone()
        figures[2] *= self.group.size
        joined = torch.cat([figures, *sums[1:]]) / self.group.size
        return self.group.sum(joined).split([len(s) for s in sums])

    def _over_latents(self, gradient: Tensor, aux: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, self.group.sum(aux / self.group.size)
