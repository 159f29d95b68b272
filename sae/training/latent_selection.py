"""Which latents every token keeps in the hand-written update; `cpu_selection` and `cuda_selection` choose them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures.base import PADDED, SparseAutoencoder
from sae.architectures.settings import Batch, SelectionInput
from sae.kernels.step_types import FlatCode, StepKernels
from sae.training.exchange import Exchange

TILE = 128  # batch sizes are rounded up to it, so that batches of nearly the same size share a recorded CUDA graph
CHUNK_NUMBERS = 1 << 27  # pre-activations held at a time, if tokens select independently of each other


class Selection(NamedTuple):
    """Latents (int32) and their pre-activations (float32): [n, k], or [p] with the layout of a `FlatCode`."""

    latents: Int[Tensor, " ..."]
    values: Float[Tensor, " ..."]
    flat: FlatCode | None = None


class LatentSelection:
    """Selects latents as `SparseAutoencoder.select` does, by the fastest kernel that fits."""

    def __init__(self, sae: SparseAutoencoder, kernels: StepKernels, exchange: Exchange):
        self.sae, self.kernels, self.exchange = sae, kernels, exchange
        self.may_pad = sae.ragged or exchange.pads_selection
        self.is_flat_batch = sae.b_dec.device.type == "cuda" and sae.selects == "k_per_batch"

    def select(self, centred: Float[Tensor, "n d"], batch: Batch, table: Float[Tensor, "m d"]) -> Selection:
        """The latents of every token, by the encoder `table` [m, d]; in chunks of tokens, if memory asks for it."""
        numbers = len(centred) * self.sae.d_sae * self.exchange.latent_processes.world_size
        n_chunks = -(-numbers // CHUNK_NUMBERS)
        if self.sae.ragged or n_chunks <= 1:
            return self._select_rows(centred, batch.gradient, table)

        step = -(-len(centred) // n_chunks // TILE) * TILE
        gradients = [None] * len(centred) if batch.gradient is None else batch.gradient.split(step)
        chunks = [self._select_rows(rows, g, table) for rows, g in zip(centred.split(step), gradients, strict=False)]
        return Selection(torch.cat([c.latents for c in chunks]), torch.cat([c.values for c in chunks]))

    def _select_rows(self, centred: Tensor, gradient: Tensor | None, table: Tensor) -> Selection:
        sae, kernels = self.sae, self.kernels
        k = getattr(sae.config, "k", 1)
        is_top_k = sae.selects == "k_per_token" and kernels.fits_groups(sae.d_sae, k)
        wants_maxima = is_top_k or (self.is_flat_batch and kernels.fits_groups(sae.d_sae, 1))
        pre_acts, maxima = kernels.encode(centred, table, sae.b_enc, wants_maxima)

        if is_top_k:
            indices, values = kernels.top_k(pre_acts, k, maxima)
            return Selection(*self.exchange.selection(indices, values, values, k))

        if self.is_flat_batch:
            tokens, latents = kernels.batch_pairs(pre_acts, k, maxima)
            flat = FlatCode.from_tokens(tokens, len(centred))
            return Selection(latents.int(), pre_acts[tokens, latents].float(), flat)

        indices = sae.select(pre_acts, SelectionInput(centred, gradient))
        if sae.ragged and centred.device.type == "cuda":
            # Few loud tokens keep very many latents: padding all tokens to the widest took 13 ms, a flat code 3.4 ms.
            flat = FlatCode.from_padded(indices)
            latents = flat.gather(indices)
            return Selection(latents.int(), pre_acts[flat.tokens, latents].float(), flat)

        values = kernels.values_at(pre_acts, indices.clamp_min(0), centred, sae.W_enc.data.T, bias=sae.b_enc.data)
        if sae.ragged:
            return Selection(indices.int(), values.masked_fill(indices < 0, PADDED))

        keys = pre_acts.gather(1, indices)

        return Selection(*self.exchange.selection(indices.int(), values, keys, k))

    def is_too_wide(self, selection: Selection) -> bool:
        """Whether tokens keep so many latents that dense products, by autograd, are faster."""
        flat = selection.flat
        if flat is None:
            return selection.latents.shape[1] > self.kernels.widest(self.sae.d_sae)
        mean_width = -(-len(selection.latents) // flat.shape[0])
        padded_numbers = flat.shape[0] * flat.shape[1]
        return padded_numbers > CHUNK_NUMBERS or mean_width > self.kernels.widest(self.sae.d_sae)

    def has_padding(self, selection: Selection) -> bool:
        """Whether some places of the selection hold no latent (-1)."""
        return self.may_pad and selection.flat is None

    def sorted_pairs(self, selection: Selection) -> object:
        """The (token, latent) pairs sorted by latent; padding is named m, one more than the last latent."""
        latents, m = selection.latents, self.sae.d_sae
        numbered = torch.where(latents < 0, m, latents) if self.has_padding(selection) else latents
        return self.kernels.sorted_pairs(numbered, m, selection.flat.tokens if selection.flat else None)
