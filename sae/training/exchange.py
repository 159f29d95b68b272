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
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures.base import PADDED, SparseAutoencoder
from sae.foundation.distributed import ALONE, Processes, Started
from sae.kernels.step_types import (
    AdamStep,
    AuxGradients,
    Decoded,
    DecodeInput,
    RowSums,
    StepKernels,
    WeightTable,
)


class TokenSums(NamedTuple):
    """Sums over the tokens of a batch.

    figures [4]: squared error, the same over all prefixes, active latents, squares of the target. Rows [d] of errors
    x_hat - y: `first_error` over all prefixes together, `last_error` of the whole dictionary. `target`: the target's rows.
    """

    figures: Float[Tensor, " 4"]
    first_error: Float[Tensor, " d"]
    last_error: Float[Tensor, " d"]
    target: Float[Tensor, " d"]


class LatentSums(NamedTuple):
    """Gradients that are sums over tokens: of b_enc [m], the same through the encoder [d], of an architecture's own
    parameters by name; and AuxK."""

    grad_b_enc: Float[Tensor, " m"]
    through_encoder: Float[Tensor, " d"]
    aux_loss: Float[Tensor, ""]
    extra_gradients: dict[str, Float[Tensor, " ..."]]


class BatchSums(NamedTuple):
    """All sums of an update."""

    tokens: TokenSums
    latents: LatentSums


class RowUpdate(NamedTuple):
    """What the update of both weight tables needs."""

    sums: RowSums
    encoder: WeightTable
    decoder: WeightTable
    adam: AdamStep
    aux: AuxGradients | None
    prefixes: Int[Tensor, " l"] | None

    def apply(self, kernels: StepKernels) -> None:
        """Updates the rows of this process from its own sums."""
        kernels.update_rows(self.sums, self.encoder, self.decoder, adam=self.adam, aux=self.aux, prefixes=self.prefixes)


class TableCopies(NamedTuple):
    """Both weight tables [m, d] as the kernels read them: on a CPU rounded or not, for the selection and for all else."""

    encoder: list[Float[Tensor, "m d"]]
    decoder: list[Float[Tensor, "m d"]]


def average_buffers(sae: SparseAutoencoder, processes: Processes, share: Float[Tensor, ""] | float) -> None:
    """Brings the running figures of an architecture to their mean over processes, each of which has `share` of the tokens."""
    for buffer in sae.buffers():
        if buffer.is_floating_point():
            buffer.copy_(processes.all_reduce_sum(buffer * share))


class Exchange(ABC):
    """How the processes of one update share it."""

    latent_processes: Processes = ALONE  # the processes that the latents are spread over
    token_processes: Processes = ALONE  # the processes that the tokens of a batch are spread over
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
    def sum_over_tokens(self, local: TokenSums) -> TokenSums:
        """Sums over the tokens of the whole batch, from sums over this process's tokens."""

    @abstractmethod
    def start_sums(
        self, local: BatchSums, tokens_since_fired: Int[Tensor, " m"], *, has_token_sums: bool
    ) -> Callable[[], BatchSums]:
        """Begins to sum over the batch; the function that is returned ends it, and brings `tokens_since_fired` up to date.

        has_token_sums: `sum_over_tokens` was called before.
        """

    @abstractmethod
    def update_rows(self, kernels: StepKernels, update: RowUpdate, copies: TableCopies) -> None:
        """Both weight gradients, Adam and the unit norm."""

    def gather_rows(self, copies: TableCopies) -> None:  # noqa: B027 (only replicas have something to bring)
        """Brings the rows that other processes have updated into the copies of both tables."""

    def own_latents(self, n_latents: int) -> slice:
        """The latents whose weights this process updates."""
        return slice(0, n_latents)

    def gather_weights(self, sae: SparseAutoencoder) -> None:  # noqa: B027
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

    def sum_over_tokens(self, local: TokenSums) -> TokenSums:
        """The sums as they are."""
        return local

    def start_sums(
        self, local: BatchSums, tokens_since_fired: Int[Tensor, " m"], *, has_token_sums: bool
    ) -> Callable[[], BatchSums]:
        """The sums as they are."""
        return lambda: local

    def update_rows(self, kernels: StepKernels, update: RowUpdate, copies: TableCopies) -> None:
        """In one pass over the latents; no gradient is ever written."""
        update.apply(kernels)


@final
class Replicas(Exchange):
    """Every process has the whole dictionary and a share of the rows; gradients are summed over processes.

    Each process gets all processes' gradients for its own share of the latents (an all-to-all), sums them in float32 by
    rank, updates these latents, and gets the others' new weights (an all-gather). Moments and Adam's work are so divided by
    the number of processes, as in ZeRO's first stage (Rajbhandari et al. 2020, arXiv 1910.02054). Equals one process on the
    same rows but for the order of sums.

    While one table's gradients travel the other's are added up, and while one table travels the other is updated. Gradients
    that travel in bfloat16 are rounded at random, so that their means are right.
    """

    def __init__(self, processes: Processes, gradients_in: torch.dtype = torch.float32):
        self.processes = self.token_processes = processes
        self.gradients_in = gradients_in

    def own_latents(self, n_latents: int) -> slice:
        """This process's share."""
        return self.processes.share(n_latents)

    def selection(
        self, indices: Int[Tensor, "n k"], values: Float[Tensor, "n k"], keys: Float[Tensor, "n k"], k: int
    ) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
        """Returns the selection unchanged: every process has all latents of its tokens."""
        return indices, values

    def decode(self, kernels: StepKernels, values: Float[Tensor, " ..."], decoding: DecodeInput) -> Decoded:
        """See `Exchange`; the rows are this process's own."""
        return kernels.decode(values, decoding)

    def sum_over_tokens(self, local: TokenSums) -> TokenSums:
        """Summed over processes, in one exchange."""
        joined = self.processes.all_reduce_sum(torch.cat(local))
        return TokenSums(*joined.split([len(s) for s in local]))

    def start_sums(
        self, local: BatchSums, tokens_since_fired: Int[Tensor, " m"], *, has_token_sums: bool
    ) -> Callable[[], BatchSums]:
        """Summed over processes, all in one exchange; a latent has fired if it fired in any of them."""
        latents, names = local.latents, list(local.latents.extra_gradients)
        tensors = [
            latents.grad_b_enc, latents.through_encoder, latents.aux_loss, *latents.extra_gradients.values(),
            (tokens_since_fired == 0).float(), *(() if has_token_sums else local.tokens),
        ]  # fmt: skip
        started = self.processes.start_all_reduce_sum(torch.cat([t.reshape(-1) for t in tensors]))

        def end() -> BatchSums:
            split = started.result().split([t.numel() for t in tensors])
            sums = [part.view(t.shape) for part, t in zip(split, tensors, strict=True)]
            last = 3 + len(names)
            tokens_since_fired.masked_fill_(sums[last] > 0, 0)
            tokens = local.tokens if has_token_sums else TokenSums(*sums[last + 1 :])
            grad_b_enc, through_encoder, aux_loss, *extra = sums[:last]
            extra_gradients = dict(zip(names, extra, strict=True))
            return BatchSums(tokens, LatentSums(grad_b_enc, through_encoder, aux_loss, extra_gradients))

        return end

    def update_rows(self, kernels: StepKernels, update: RowUpdate, copies: TableCopies) -> None:
        """Gradients are written, summed over processes, and applied to this process's share."""
        gradients = kernels.row_gradients(
            update.sums, update.adam, self.gradients_in, aux=update.aux, prefixes=update.prefixes
        )
        of_encoder, of_decoder = [self.processes.start_all_to_all(table) for table in gradients]
        kernels.apply_rows(of_encoder.result(), update.encoder, adam=update.adam, has_unit_norm=False)
        travelling = self._gathered(copies.encoder)
        kernels.apply_rows(of_decoder.result(), update.decoder, adam=update.adam, has_unit_norm=True)
        travelling += self._gathered(copies.decoder)
        for table in travelling:
            table.result()

    def gather_rows(self, copies: TableCopies) -> None:
        """See `Exchange`."""
        for table in self._gathered([*copies.encoder, *copies.decoder]):
            table.result()

    def _gathered(self, copies: list[Tensor]) -> list[Started]:
        distinct = {t.data_ptr(): t for t in copies}  # on a CPU both copies may be one tensor
        return [self.processes.start_all_gather_shares(table) for table in distinct.values()]

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

    def sum_over_tokens(self, local: TokenSums) -> TokenSums:
        """The mean over processes, so that all have the same bits; only the number of active latents (figure 2) adds up.

        Every process has all tokens, so its sums are those of the others but for the order of additions.
        """
        figures = local.figures.clone()
        figures[2] *= self.processes.world_size
        joined = torch.cat([figures, *local[1:]]) / self.processes.world_size
        return TokenSums(*self.processes.all_reduce_sum(joined).split([len(s) for s in local]))

    def start_sums(
        self, local: BatchSums, tokens_since_fired: Int[Tensor, " m"], *, has_token_sums: bool
    ) -> Callable[[], BatchSums]:
        """b_enc's gradient is of this process's own latents; AuxK is the same everywhere but for the order of sums."""
        tokens = local.tokens if has_token_sums else self.sum_over_tokens(local.tokens)
        through_encoder = self.processes.all_reduce_sum(local.latents.through_encoder)
        aux_loss = self.processes.all_reduce_sum(local.latents.aux_loss / self.processes.world_size)
        latents = local.latents._replace(through_encoder=through_encoder, aux_loss=aux_loss)
        return lambda: BatchSums(tokens, latents)

    def update_rows(self, kernels: StepKernels, update: RowUpdate, copies: TableCopies) -> None:
        """As in `Alone`: this process has all rows of the batch."""
        update.apply(kernels)
