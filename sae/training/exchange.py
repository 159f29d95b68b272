"""What the processes of a run tell each other inside an update: nothing, gradients, or selections.

`FusedStep` is written for one process. If a run has several processes, it asks one of these classes:

    Alone         one process has the dictionary and the batch
    Replicas      every process has the whole dictionary and a share of the batch's rows
    LatentShards  every process has a share of the latents and all rows of the batch

A dictionary that is trained by autograd does not come here: `SaeTrainer` (trainer.py) all-reduces its gradients. With `parallel:
dictionaries` every process is `Alone`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures.base import PADDED, SparseAutoencoder
from sae.foundation.distributed import ALONE, Processes
from sae.kernels.step_types import (
    AdamStep,
    AuxGradients,
    Decoded,
    DecodeInput,
    RowSums,
    StepKernels,
    WeightTable,
)


class RowUpdate(NamedTuple):
    """What the update of both weight tables needs. `copies` are the whole weights as matrix products read them."""

    sums: RowSums
    encoder: WeightTable
    decoder: WeightTable
    adam: AdamStep
    aux: AuxGradients | None
    prefixes: Int[Tensor, " l"] | None
    copies: list[Float[Tensor, "m d"]]

    def apply(self, kernels: StepKernels) -> None:
        """Updates the rows of this process from its own sums."""
        kernels.update_rows(self.sums, self.encoder, self.decoder, adam=self.adam, aux=self.aux, prefixes=self.prefixes)


class Exchange(ABC):
    """How the processes of one update share it."""

    latent_processes: Processes = ALONE  # the processes that the latents are spread over
    pads_selection: bool = False  # whether a token may keep fewer than k latents in this process; -1 fills up

    @abstractmethod
    def selection(
        self, indices: Int[Tensor, "n k"], values: Float[Tensor, "n k"], keys: Float[Tensor, "n k"], k: int
    ) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
        """(latents, pre-activations) [n, k] that stay selected, given the numbers `keys` they were selected by."""

    @abstractmethod
    def decode(self, kernels: StepKernels, values: Float[Tensor, " ..."], decoding: DecodeInput) -> Decoded:
        """The decoder's output, with the errors of the whole reconstruction."""

    @abstractmethod
    def sum_over_tokens(self, *sums: Float[Tensor, " _n"]) -> tuple[Float[Tensor, " _n"], ...]:
        """Sums over the tokens of the whole batch, from sums over this process's tokens."""

    @abstractmethod
    def finish_latent_sums(
        self, grad_b_enc: Float[Tensor, " m"], aux_loss: Float[Tensor, ""], tokens_since_fired: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, ""]]:
        """(the gradient of b_enc, AuxK) of the whole batch; brings `tokens_since_fired` up to date."""

    @abstractmethod
    def update_rows(self, kernels: StepKernels, update: RowUpdate) -> None:
        """Both weight gradients, Adam and the unit norm."""

    def own_latents(self, n_latents: int) -> slice:
        """The latents whose weights this process updates."""
        return slice(0, n_latents)

    def gather_weights(self, sae: SparseAutoencoder) -> None:  # noqa: B027 (only replicas have something to bring)
        """Brings the weights that other processes have updated."""


@final
class Alone(Exchange):
    """One process has everything."""

    def selection(
        self, indices: Int[Tensor, "n k"], values: Float[Tensor, "n k"], keys: Float[Tensor, "n k"], k: int
    ) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
        """Returns the selection unchanged: one process has all latents."""
        return indices, values

    def decode(self, kernels: StepKernels, values: Float[Tensor, " ..."], decoding: DecodeInput) -> Decoded:
        """See `Exchange`."""
        return kernels.decode(values, decoding)

    def sum_over_tokens(self, *sums: Float[Tensor, " _n"]) -> tuple[Float[Tensor, " _n"], ...]:
        """The sums as they are."""
        return sums

    def finish_latent_sums(
        self, grad_b_enc: Float[Tensor, " m"], aux_loss: Float[Tensor, ""], tokens_since_fired: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, ""]]:
        """Returns both sums unchanged."""
        return grad_b_enc, aux_loss

    def update_rows(self, kernels: StepKernels, update: RowUpdate) -> None:
        """In one pass over the latents; no gradient is ever written."""
        update.apply(kernels)


@final
class Replicas(Exchange):
    """Every process has the whole dictionary and a share of the rows; gradients are summed over processes.

    Each process sums the gradients of all rows for its own share of the latents (a reduce-scatter), updates these, and
    gets the others' new weights (an all-gather). Moments and Adam's work are so divided by the number of processes, as
    in ZeRO's first stage (Rajbhandari et al. 2020, arXiv 1910.02054). Equals one process on the same rows but for the
    order of sums.
    """

    def __init__(self, processes: Processes):
        self.processes = processes

    @staticmethod
    def fits(sae: SparseAutoencoder, processes: Processes) -> bool:
        """Whether every token keeps the same number of latents, the loss is a squared error, and nothing is skipped."""
        is_plain = not sae.ragged and sae.loss_terms in ("error", "prefixes") and sae.W_skip is None
        return is_plain and sae.d_sae % processes.world_size == 0

    def own_latents(self, n_latents: int) -> slice:
        """This process's share."""
        return self.processes.share(n_latents)

    def selection(
        self, indices: Int[Tensor, "n k"], values: Float[Tensor, "n k"], keys: Float[Tensor, "n k"], k: int
    ) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
        """Returns the selection unchanged: every process has all latents of its tokens."""
        return indices, values

    def decode(self, kernels: StepKernels, values: Float[Tensor, "n k"], decoding: DecodeInput) -> Decoded:
        """See `Exchange`; the rows are this process's own."""
        return kernels.decode(values, decoding)

    def sum_over_tokens(self, *sums: Float[Tensor, " _n"]) -> tuple[Float[Tensor, " _n"], ...]:
        """Summed over processes, in one exchange."""
        return self.processes.all_reduce_sum(torch.cat(sums)).split([len(s) for s in sums])

    def finish_latent_sums(
        self, grad_b_enc: Float[Tensor, " m"], aux_loss: Float[Tensor, ""], tokens_since_fired: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, ""]]:
        """Summed over processes; a latent has fired if it fired in any of them, so the minimum of the counts is taken."""
        self.processes.all_reduce_min(tokens_since_fired)
        bias_gradient_and_aux = self.processes.all_reduce_sum(torch.cat([grad_b_enc, aux_loss[None]]))
        return bias_gradient_and_aux[:-1], bias_gradient_and_aux[-1]

    def update_rows(self, kernels: StepKernels, update: RowUpdate) -> None:
        """Gradients are written, summed over processes, and applied to this process's share."""
        gradients = kernels.row_gradients(update.sums, aux=update.aux, prefixes=update.prefixes)
        grad_encoder, grad_decoder = map(self.processes.reduce_scatter, gradients)
        kernels.apply_rows(grad_encoder, grad_decoder, update.encoder, update.decoder, adam=update.adam)
        for table in {t.data_ptr(): t for t in update.copies}.values():  # on a CPU both copies may be one tensor
            self.processes.all_gather_shares(table)

    def gather_weights(self, sae: SparseAutoencoder) -> None:
        """Brings the weights that other processes have updated."""
        self.processes.all_gather_shares(sae.W_enc.data.T)
        self.processes.all_gather_shares(sae.W_dec.data)


@final
class LatentShards(Exchange):
    """Every process has a share of the latents and all rows of the batch; no weight ever leaves its process.

    The k largest of a token are found among the k largest of every process (k numbers per process travel; ties go to
    the smaller latent, as alone), and the sum of the processes' reconstructions travels once. Gao et al. 2024, arXiv
    2406.04093, section 3.2, spread latents in the same way.
    """

    pads_selection = True

    def __init__(self, processes: Processes):
        self.processes = self.latent_processes = processes

    @staticmethod
    def fits(sae: SparseAutoencoder) -> bool:
        """Whether the dictionary is a TopK of one hook point with a squared error."""
        has_one_hook = sae.centred and len(sae.config.reads) == 1
        return has_one_hook and sae.selects == "k_per_token" and sae.loss_terms == "error"

    def selection(
        self, indices: Int[Tensor, "n k"], values: Float[Tensor, "n k"], keys: Float[Tensor, "n k"], k: int
    ) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
        """The latents among the k largest of all processes; -1 and `PADDED` in the places of the others."""
        everywhere = self.processes.all_gather_columns(keys.float())
        least = everywhere.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
        above, ties = everywhere > least, everywhere == least
        n_spare = k - above.sum(1, keepdim=True)
        selected = above | (ties & (ties.cumsum(1) <= n_spare))

        width, rank = keys.shape[1], self.processes.rank
        is_own = selected[:, rank * width : (rank + 1) * width]
        return torch.where(is_own, indices, -1), values.masked_fill(~is_own, PADDED)

    def decode(self, kernels: StepKernels, values: Float[Tensor, "n k"], decoding: DecodeInput) -> Decoded:
        """Decoded twice: once for the sum of all processes' reconstructions, once with the error that it leaves."""
        # This process's part of x_hat, plus b_dec - y.
        own_error = kernels.decode(values, decoding, error_dtype=torch.float32).error[0]
        error = self.processes.all_reduce_sum(own_error.clone())  # holds b_dec - y once per process
        error.add_(decoding.target - decoding.bias, alpha=self.processes.world_size - 1)
        target = own_error.add_(decoding.target).sub_(error)  # against this target the own part has the error of all
        return kernels.decode(values, decoding._replace(target=target))

    def sum_over_tokens(self, *sums: Float[Tensor, " _n"]) -> tuple[Float[Tensor, " _n"], ...]:
        """The mean over processes, so that all have the same bits; only the number of active latents (figure 2) adds up.

        Every process has all tokens, so its sums are those of the others but for the order of additions.
        """
        figures = sums[0].clone()
        figures[2] *= self.processes.world_size
        joined = torch.cat([figures, *sums[1:]]) / self.processes.world_size
        return self.processes.all_reduce_sum(joined).split([len(s) for s in sums])

    def finish_latent_sums(
        self, grad_b_enc: Float[Tensor, " m"], aux_loss: Float[Tensor, ""], tokens_since_fired: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, ""]]:
        """The gradient is of this process's own latents; AuxK is the same everywhere but for the order of sums."""
        return grad_b_enc, self.processes.all_reduce_sum(aux_loss / self.processes.world_size)

    def update_rows(self, kernels: StepKernels, update: RowUpdate) -> None:
        """As in `Alone`: this process has all rows of the batch."""
        update.apply(kernels)
