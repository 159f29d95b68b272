"""AuxK by hand, and how many latents are dead without making the GPU wait for the answer."""

from __future__ import annotations

from collections import deque

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sae.architectures.base import SparseAutoencoder
from sae.foundation.distributed import ALONE, Processes
from sae.kernels.dense import product
from sae.kernels.step_types import AuxGradients

LAG = 2  # updates between requesting the count of dead latents and reading it
FEWEST_SLOTS = 64  # slots come in powers of two from here on, so that few shapes are compiled and recorded
CHUNK_NUMBERS = 1 << 26  # pre-activations of dead latents that are held at a time


class DeadLatentCount:
    """An upper bound of the dead latents at the next update.

    Reading a count from a GPU right away would make Python wait for the whole update. So the count is requested after
    every update and read `LAG` updates later, when it has long arrived; it includes latents that can die in between.
    """

    def __init__(self, sae: SparseAutoencoder, processes: Processes = ALONE):
        self.sae, self.processes = sae, processes
        config = sae.config
        self.is_needed = config.k_aux > 0 and config.aux_coefficient > 0
        self._requested: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def _count(self, tokens_ahead: int) -> Tensor:
        limit = self.sae.config.dead_after_tokens - tokens_ahead
        return self.processes.all_reduce_sum((self.sae.tokens_since_fired >= limit).sum())

    def slots(self, n_tokens: int, tokens_seen: int) -> int:
        """Rows to hold for dead latents in an update on `n_tokens`, a power of two; 0 if none can be dead."""
        if not self.is_needed or tokens_seen < self.sae.config.dead_after_tokens:
            return 0
        if len(self._requested) < LAG:
            count = int(self._count(LAG * n_tokens))
        else:
            on_host, arrived = self._requested.popleft()
            if arrived is not None:
                arrived.synchronize()
            count = int(on_host)

        return 0 if count == 0 else min(self.sae.d_sae, max(FEWEST_SLOTS, 1 << (count - 1).bit_length()))

    def request(self, n_tokens: int, tokens_seen: int) -> None:
        """Requests the count after an update; batches may grow by half until it is read."""
        if not self.is_needed or tokens_seen + 2 * LAG * n_tokens < self.sae.config.dead_after_tokens:
            return

        count = self._count(LAG * n_tokens * 3 // 2)
        if count.device.type != "cuda":
            self._requested.append((count, None))
            return

        on_host = torch.empty((), dtype=count.dtype, pin_memory=True)
        on_host.copy_(count, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._requested.append((on_host, arrived))


def aux_loss_and_gradients(
    sae: SparseAutoencoder,
    tables: tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]],
    *,
    centred: Float[Tensor, "n d"],
    error: Float[Tensor, "n d"],
    is_counted: Float[Tensor, " n"],
    spread: Float[Tensor, ""],
    n_slots: int,
    processes: Processes = ALONE,
) -> tuple[Float[Tensor, ""], AuxGradients]:
    """(AuxK, its gradients times `aux_coefficient`) for at most `n_slots` dead latents; see
    `SparseAutoencoder.aux_loss`.

    tables: W_enc and W_dec by latent [m, d]; centred input and error = x_hat - y [n, d]; is_counted [n] is 0 for
    padding; spread: ||e - mean e||^2 of the whole batch. Nothing here waits for the GPU, and shapes depend on `n_slots`
    alone. `processes` are those that hold latents of this dictionary for the same rows.
    """
    # Give every dead latent a slot; slots that stay empty are masked out below.
    is_dead = sae.dead()
    rank_among_dead = is_dead.cumsum(0) - 1
    slots = torch.where(is_dead & (rank_among_dead < n_slots), rank_among_dead, -1)
    latents = torch.zeros(n_slots + 1, dtype=torch.int64, device=centred.device)
    every_latent = torch.arange(sae.d_sae, device=centred.device)
    latents = latents.scatter_(0, torch.where(slots < 0, n_slots, slots), every_latent)[:n_slots]
    is_empty = torch.arange(n_slots, device=centred.device) >= is_dead.sum()

    encoder, decoder = (table[latents].to(centred.dtype) for table in tables)
    bias = sae.b_enc.detach()[latents]
    loss = spread.new_zeros(())
    grad_encoder, grad_decoder = (
        torch.zeros(n_slots, t.shape[1], dtype=torch.float32, device=t.device) for t in (centred, error)
    )
    grad_bias = torch.zeros_like(bias)

    step = max(1, CHUNK_NUMBERS // n_slots)
    chunks = zip(centred.split(step), error.split(step), is_counted.split(step), strict=True)
    for x, e, counted in chunks:
        pre_acts = (product(x, encoder.T) + bias).masked_fill(is_empty, float("-inf"))
        acts = _strongest(pre_acts, sae.config.k_aux, processes) * counted[:, None]
        code = acts.to(centred.dtype)
        residual = e.float() * counted[:, None] + processes.all_reduce_sum(product(code, decoder))
        loss = loss + residual.square().sum()

        grad_e_hat = (residual * (2 * sae.config.aux_coefficient / spread)).to(centred.dtype)
        grad_decoder += product(code.T, grad_e_hat)
        grad_acts = product(grad_e_hat, decoder.T).masked_fill_(acts <= 0, 0.0)
        grad_bias += grad_acts.sum(0)
        grad_encoder += product(grad_acts.to(centred.dtype).T, x)

    # Slots are held for latents that may be dead. If none is, e_hat is 0 and the loss would be 1 instead of 0.
    loss = loss / spread * (processes.all_reduce_sum(is_dead.sum()) > 0)
    return loss, AuxGradients(slots.int(), grad_encoder, grad_decoder, grad_bias)


def _strongest(pre_acts: Tensor, k_aux: int, processes: Processes) -> Tensor:
    """ReLU of the k_aux largest pre-activations per token among all processes, 0 elsewhere, [n, slots]."""
    n_slots = pre_acts.shape[1]
    if n_slots * processes.world_size <= k_aux:
        return F.relu(pre_acts)

    top = pre_acts.topk(min(n_slots, k_aux), dim=1, sorted=False)
    strongest = F.relu(top.values)
    if processes.world_size > 1:
        everywhere = processes.all_gather_columns(top.values)
        least = everywhere.topk(k_aux, dim=1, sorted=False).values.amin(1, keepdim=True)
        strongest = strongest.masked_fill(top.values < least, 0.0)

    return torch.zeros_like(pre_acts).scatter_(1, top.indices, strongest)
