"""Which latents every token keeps in the hand-written update; `cpu_selection`, `cuda_selection`, `cuda_ragged` choose them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures.base import PADDED, SparseAutoencoder
from sae.architectures.settings import Batch, SelectionInput
from sae.kernels.sparse import selection_for
from sae.kernels.step_types import FlatCode, StepKernels
from sae.training.batch_selection import by_token, kept, largest_of_batch
from sae.training.exchange import Exchange

TILE = 128  # batch sizes are rounded up to it, so that batches of nearly the same size share a recorded CUDA graph
# Pre-activations held at a time, if tokens select independently of each other; on a GPU more, if they are those of few
# rows, because every piece reads the whole encoder: 44 ms an update of a million latents in pieces of 128, 34 of 1,024.
CHUNK_NUMBERS, FEWEST_ROWS = {"cpu": 1 << 27, "cuda": 1 << 28}, 1024
LEAST_SPARSE = 4  # times as many latents as a token keeps on average, or autograd takes the update
MOST_PAIRS = 1 << 27  # of a batch whose tokens keep different numbers of latents; each takes about 60 bytes on a GPU


class Selection(NamedTuple):
    """Latents (int32) and their pre-activations (float32): [n, k], or [p] with the layout of a `FlatCode`."""

    latents: Int[Tensor, " ..."]
    values: Float[Tensor, " ..."]
    flat: FlatCode | None = None


class LatentSelection:
    """Selects latents as `SparseAutoencoder.select` does, by the fastest kernel that fits."""

    def __init__(self, sae: SparseAutoencoder, kernels: StepKernels, exchange: Exchange):
        self.sae, self.kernels, self.exchange = sae, kernels, exchange
        is_gpu = sae.b_dec.device.type == "cuda"
        self.is_flat_batch = is_gpu and sae.selects == "k_per_batch"
        # The number of pairs is known only once they are counted, so selection is two parts: `count`, `fill`.
        self.is_counted_first = is_gpu and sae.selects in ("above_bounds", "to_norm")

    def select(
        self, centred: Float[Tensor, "n d"], batch: Batch, table: Float[Tensor, "m d"], *, n_tokens: int
    ) -> Selection:
        """The latents of every token, by the encoder `table` [m, d]; in chunks of tokens, if memory asks for it.

        `n_tokens` are those of the batch in all processes.
        """
        numbers = len(centred) * self.sae.d_sae * self.exchange.latent_processes.world_size
        n_chunks = -(-numbers // CHUNK_NUMBERS[centred.device.type])
        if centred.device.type == "cuda":
            n_chunks = min(n_chunks, -(-len(centred) // FEWEST_ROWS))
        codes = self._codes(table)
        if self.sae.ragged or n_chunks <= 1:
            return self._select_rows(centred, batch.gradient, table, codes=codes, n_tokens=n_tokens)

        step = -(-len(centred) // n_chunks // TILE) * TILE
        gradients = [None] * len(centred) if batch.gradient is None else batch.gradient.split(step)
        chunks = [
            self._select_rows(rows, g, table, codes=codes, n_tokens=n_tokens)
            for rows, g in zip(centred.split(step), gradients, strict=False)
        ]
        return Selection(torch.cat([c.latents for c in chunks]), torch.cat([c.values for c in chunks]))

    def _codes(self, table: Float[Tensor, "m d"]) -> Any:
        """The table in 8 bits (`cuda_proposals.QuantisedRows`) where these propose latents, else None."""
        sae = self.sae
        if table.device.type != "cuda" or sae.selects != "k_per_token":
            return None
        from sae.kernels import cuda_proposals

        n_latents, width = table.shape
        return cuda_proposals.quantised(table) if cuda_proposals.fits(n_latents, width, sae.k_in_loss) else None

    def _select_rows(
        self, centred: Tensor, gradient: Tensor | None, table: Tensor, *, codes: Any, n_tokens: int
    ) -> Selection:
        sae, kernels, k = self.sae, self.kernels, self.sae.k_in_loss
        if codes is not None:
            from sae.kernels import cuda_proposals

            indices, values = cuda_proposals.largest(centred, table, sae.b_enc, k, codes=codes)
            return Selection(*self.exchange.selection(indices, values, values, k))

        # Where latents are kept by bounds, too many may be above them while training begins.
        if sae.selects == "k_per_token" and (indices := sae.proposed(centred, k)) is not None:
            return self._with_values(indices, centred, None)

        is_top_k = sae.selects == "k_per_token" and kernels.fits_groups(sae.d_sae, k)
        wants_maxima = is_top_k or (self.is_flat_batch and kernels.fits_groups(sae.d_sae, 1))
        pre_acts, maxima = kernels.encode(centred, table, sae.b_enc, wants_maxima)

        if is_top_k:
            indices, values = kernels.top_k(pre_acts, k, maxima)
            return Selection(*self.exchange.selection(indices, values, values, k))

        if self.is_flat_batch:
            return self._of_batch(pre_acts, maxima, n_tokens * k)

        if sae.loss_terms == "wider":
            indices = selection_for(pre_acts).top_k_indices(pre_acts, k)
        elif sae.selects == "k_per_batch" and self.exchange.token_processes.world_size > 1:
            indices = largest_of_batch(pre_acts, n_tokens * k, self.exchange.token_processes)
        else:
            indices = sae.select(pre_acts, SelectionInput(centred, gradient))
        return self._with_values(indices, centred, pre_acts)

    def _of_batch(self, pre_acts: Tensor, maxima: Tensor | None, wanted: int) -> Selection:
        """The `wanted` largest pre-activations of the batch in all processes, as a `FlatCode`."""
        processes = self.exchange.token_processes
        tokens, latents = self.kernels.batch_pairs(pre_acts, wanted, maxima)
        values = pre_acts[tokens, latents].float()
        if processes.world_size == 1:
            return Selection(latents.int(), values, FlatCode.from_tokens(tokens, len(pre_acts)))
        keep = kept(values, wanted, processes)
        return Selection(*by_token(tokens, latents, values, keep, shape=(len(pre_acts), self.sae.d_sae)))

    def _with_values(self, indices: Tensor, centred: Tensor, pre_acts: Tensor | None) -> Selection:
        """Selected latents with their pre-activations; -1 is padding. Proposals on a CPU leave no table `pre_acts`."""
        sae = self.sae
        values = self.kernels.values_at(
            pre_acts, indices.clamp_min(0), centred, sae.W_enc.data.T, bias=sae.b_enc.data
        )  # fmt: skip
        if sae.ragged:
            return Selection(indices.int(), values.masked_fill(indices < 0, PADDED))

        keys = values if pre_acts is None else pre_acts.gather(1, indices)

        return Selection(*self.exchange.selection(indices.int(), values, keys, sae.k_in_loss))

    def count(self, centred: Float[Tensor, "n d"], table: Float[Tensor, "m d"], is_counted: Float[Tensor, " n"]) -> Any:
        """Which latents are kept, not yet written down (a `CountedLatents`); none in rows that are not counted."""
        from sae.kernels import cuda_ragged

        sae, processes = self.sae, self.exchange.token_processes
        if sae.selects == "to_norm":
            counted = cuda_ragged.count_to_norm(centred, table, sae.b_enc, is_counted=is_counted)
        else:
            bounds = sae.selection_bounds()
            assert bounds is not None
            counted = cuda_ragged.count_above(centred, table, sae.b_enc, bounds=bounds, is_counted=is_counted)
        # All processes must record the same sizes, so they make room for the largest number of pairs.
        return counted._replace(n_most=processes.all_reduce_max(counted.starts[-1:].clone()))

    def room(self, counted: Any) -> int | None:
        """Places for the counted latents, enough for all; None if there are so many that dense products are faster.

        Python waits for the GPU here.
        """
        from sae.kernels import cuda_ragged

        n_pairs = counted.n_pairs()
        most = min(MOST_PAIRS, counted.pre_acts.numel() // LEAST_SPARSE)
        return None if n_pairs > most else cuda_ragged.room_for(n_pairs)

    def fill(self, counted: Any, room: int) -> Selection:
        """The counted latents, in a list of `room` places."""
        from sae.kernels import cuda_ragged

        return Selection(*cuda_ragged.fill(counted, room))

    def is_too_wide(self, selection: Selection) -> bool:
        """Whether tokens keep so many latents that dense products, by autograd, are faster."""
        flat = selection.flat
        width = selection.latents.shape[1] if flat is None else -(-len(selection.latents) // (len(flat.starts) - 1))
        processes = self.exchange.token_processes
        if processes.world_size > 1 and self.sae.ragged and flat is None:  # all take the same way
            width = int(processes.all_reduce_max(torch.tensor(width)))
        return width > self.kernels.widest(self.sae.d_sae)
