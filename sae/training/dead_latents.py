"""AuxK by hand for the step without autograd, and how many latents are dead without making the GPU wait."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sae.architectures.base import SparseAutoencoder
from sae.foundation.distributed import ALONE, Group

LAG = 2  # updates between counting the dead and reading the count
LEAST_ROOM = 64
CHUNK_NUMBERS = 1 << 26


class DeadCount:
    """How many latents may be dead at the next update, rounded up to a power of two; 0 for none.

    The count is asked for after every update and read `LAG` updates later, when it has long arrived. It also counts those
    that can die in between, so it is never too small.
    """

    def __init__(self, sae: SparseAutoencoder, group: Group = ALONE):
        self.sae, self.group = sae, group
        config = sae.config
        self.wanted = config.k_aux > 0 and config.aux_coefficient > 0
        self._asked: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def _count(self, tokens: int) -> Tensor:
        return self.group.sum((self.sae.tokens_since_fired >= self.sae.config.dead_after_tokens - tokens).sum())

    def room(self, n_tokens: int, tokens_seen: int) -> int:
        """Places to hold for dead latents in an update on `n_tokens`."""
        if not self.wanted or tokens_seen < self.sae.config.dead_after_tokens:
            return 0  # no latent can be dead yet
        if len(self._asked) < LAG:
            count = int(self._count(LAG * n_tokens))
        else:
            held, arrived = self._asked.popleft()
            if arrived is not None:
                arrived.synchronize()
            count = int(held)
        return 0 if count == 0 else min(self.sae.d_sae, max(LEAST_ROOM, 1 << (count - 1).bit_length()))

    def ask(self, n_tokens: int, tokens_seen: int) -> None:
        """Asks for the count after an update; batches may grow by half until it is read."""
        if not self.wanted or tokens_seen + 2 * LAG * n_tokens < self.sae.config.dead_after_tokens:
            return
        found = self._count(LAG * n_tokens * 3 // 2)
        if found.device.type != "cuda":
            self._asked.append((found, None))
            return
        held = torch.empty((), dtype=found.dtype, pin_memory=True)
        held.copy_(found, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._asked.append((held, arrived))


class Revival(NamedTuple):
    """AuxK of a batch and its gradients: `slots` [d_sae] names the row of every dead latent in the others, or -1."""

    loss: Tensor
    slots: Tensor
    w_enc: Tensor
    w_dec: Tensor
    b_enc: Tensor


def revive(
    sae: SparseAutoencoder, w_enc: Tensor, w_dec: Tensor, given: Tensor, error: Tensor, real: Tensor, spread: Tensor,
    room: int, group: Group = ALONE,
) -> Revival:  # fmt: skip
    """AuxK and its gradients times `aux_coefficient`, for at most `room` dead latents: see `SparseAutoencoder.aux_loss`.

    w_enc, w_dec [d_sae, width], given and error = x_hat - y [tokens, width]; `real` [tokens] is 1 for rows that count and 0
    for others; `spread` is ||e - mean e||^2 of the whole batch. Nothing here waits for the GPU, and shapes depend on `room`
    alone. `group` are the processes that hold latents of this dictionary for the same rows.
    """
    dead = sae.dead()
    place = dead.cumsum(0) - 1
    slots = torch.where(dead & (place < room), place, -1)
    latents = torch.zeros(room + 1, dtype=torch.int64, device=given.device)
    latents.scatter_(0, torch.where(slots < 0, room, slots), torch.arange(sae.d_sae, device=given.device))
    latents = latents[:room]
    empty = torch.arange(room, device=given.device) >= dead.sum()
    encoder, decoder = (table[latents].to(given.dtype) for table in (w_enc, w_dec))
    bias = sae.b_enc.detach()[latents]
    loss = spread.new_zeros(())
    to_enc, to_dec = (torch.zeros(room, t.shape[1], dtype=torch.float32, device=t.device) for t in (given, error))
    to_bias = torch.zeros_like(bias)
    step = max(1, CHUNK_NUMBERS // room)
    for x, e, counted in zip(given.split(step), error.split(step), real.split(step), strict=True):
        pre_acts = (_product(x, encoder.T) + bias).masked_fill(empty, float("-inf"))
        acts = F.relu(pre_acts)
        if room * group.size > sae.config.k_aux:
            top = pre_acts.topk(min(room, sae.config.k_aux), dim=1, sorted=False)
            strongest = F.relu(top.values)
            if group.size > 1:
                least = (
                    group.beside(top.values).topk(sae.config.k_aux, dim=1, sorted=False).values.amin(1, keepdim=True)
                )
                strongest = strongest.masked_fill(top.values < least, 0.0)
            acts = torch.zeros_like(pre_acts).scatter_(1, top.indices, strongest)
        acts *= counted[:, None]
        code = acts.to(given.dtype)
        left = e.float() * counted[:, None] + group.sum(_product(code, decoder))
        loss = loss + left.square().sum()
        to_e_hat = (left * (2 * sae.config.aux_coefficient / spread)).to(given.dtype)
        to_dec += _product(code.T, to_e_hat)
        to_acts = _product(to_e_hat, decoder.T).masked_fill_(acts <= 0, 0.0)
        to_bias += to_acts.sum(0)
        to_enc += _product(to_acts.to(given.dtype).T, x)
    loss = loss / spread * (group.sum(dead.sum()) > 0)  # room may be held for latents that are not dead after all
    return Revival(loss, slots.int(), to_enc, to_dec, to_bias)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b, summed and returned in float32."""
    return a @ b if a.dtype == torch.float32 else torch.mm(a, b, out_dtype=torch.float32)
