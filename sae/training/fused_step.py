"""One update of a dictionary without autograd: every gradient by hand, and never written where it is large."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.architectures.base import PADDED, SparseAutoencoder
from sae.architectures.k_largest import KLargest
from sae.architectures.running_threshold import BatchSelected
from sae.architectures.settings import Batch, Encoding, Pass, Selecting
from sae.foundation.distributed import ALONE, Group
from sae.kernels import moments
from sae.kernels.sparse import HAS_TRITON
from sae.kernels.step_parts import Adam, Decoded, Flat, More, Rows
from sae.training.cuda_graphs import Graphs
from sae.training.dead_latents import DeadCount, revive

TILE = 128  # batches of nearly the same size share a recording
CHUNK_NUMBERS = 1 << 27  # pre-activations that are held at a time where tokens select for themselves


def _kernels(device: torch.device) -> ModuleType:
    if device.type == "cuda":
        from sae.kernels import cuda

        return cuda
    from sae.kernels import cpu_step

    return cpu_step


class Made(NamedTuple):
    """What an update came to, as tensors: [loss, AuxK, mean l0, sum of the squared errors, sum of the target's squares],
    and the sum of the target's rows."""

    figures: Tensor
    total: Tensor


class FusedStep:
    """Forward pass, gradients, Adam and the unit norm of one batch, as `SparseAutoencoder.losses` defines them.

    Differs from the reference on a GPU in precision: products and the stored rows of input and error are in bfloat16, and
    the activations are the bfloat16 pre-activations; weights, moments and all sums are in float32. On a CPU all but the
    selection is in float32. The moments of both tables can be kept in fewer bits, see `kernels.moments`.
    """

    def __init__(
        self, sae: SparseAutoencoder, optimiser: torch.optim.Adam, group: Group = ALONE, moments_in: str = "float32"
    ):
        self.moments_in = moments_in
        self.sae, self.optimiser, self.group, self.kernels = sae, optimiser, group, _kernels(sae.b_dec.device)
        self.ragged = sae.ragged  # whether a token may keep fewer latents than its row of the code is long
        on_gpu = sae.b_dec.device.type == "cuda"
        self.by_batch = on_gpu and isinstance(sae, BatchSelected)  # as many of every batch as it has tokens, times k
        self.recorded = on_gpu and (self.by_batch or not sae.ragged)  # else the shapes are not known beforehand
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in sae.named_parameters()}
        self.prefixes = self._prefixes()
        self.reset()

    @staticmethod
    def fits(sae: SparseAutoencoder) -> bool:
        """Whether this dictionary of one hook point has a loss whose gradients are known here, on a device with kernels.

        On a GPU of compute capability 9.0 or more (the tiles are of a size that an H100 holds; they were tried on nothing
        else) in bfloat16, and on a CPU.
        """
        device = sae.b_dec.device
        if sae.loss_is_of is None or len(sae.config.reads) > 1 or not sae.centred:
            return False
        if device.type == "cuda":
            fast = HAS_TRITON and torch.cuda.get_device_capability(device) >= (9, 0)
            sizes = sae.d_in % 16 == 0 == sae.d_out % 16 and sae.d_sae % 8 == 0
            if not fast or not sizes or sae.selection_dtype != torch.bfloat16:
                return False
        return device.type in ("cpu", "cuda") and getattr(sae.config, "k", 1) <= _kernels(device).widest(sae.d_sae)

    def reset(self) -> None:
        """Forgets what is derived from weights and moments; to be called when they change from outside."""
        self._rounded: list[Tensor] = []  # the tables as the encoder's product reads them, and as all else does
        self._tables: list[Tensor] = []
        self._updates = 0
        self._numbers: Tensor | None = None
        self._held_rows: dict[int, Batch] = {}
        self._dead, self._graphs = DeadCount(self.sae, self._latents_of), Graphs()

    @torch.no_grad()
    def __call__(
        self, raw: Batch, scale: Tensor, variance: Tensor, lr: float, tokens_seen: int, counts: list[int]
    ) -> Made | None:
        """One update on rows in the language model's units; None, and nothing done, where a token keeps too many latents.

        `counts` are the numbers of rows of all replicas.
        """
        n = sum(counts)
        adam = self._adam(lr, n, len(raw.x))
        room = self._dead.room(n, tokens_seen)
        if not self.recorded or (self.by_batch and n % TILE):  # no row may be there that does not count
            made = self._update(raw, scale, variance, adam, room, tokens_seen)
        else:
            held = self._held(raw, -(-max(counts) // TILE) * TILE)  # of one size, so that all record at the same time
            key = (len(held.x), room)
            made = self._graphs(key, lambda: self._update(held, scale, variance, adam, room, tokens_seen))
        if made is not None:
            self._updates += 1
            torch._foreach_add_(self._steps, 1)  # pyright: ignore[reportPrivateImportUsage]
            self._dead.ask(n, tokens_seen)
        return made

    def _held(self, raw: Batch, size: int) -> Batch:
        """The rows in tensors that stay where they are, followed by rows that do not count."""
        if size not in self._held_rows:
            x, gradient = (None if t is None else t.new_zeros(size, t.shape[1]) for t in (raw.x, raw.gradient))
            assert x is not None
            self._held_rows[size] = Batch(x, x, gradient)
        held = self._held_rows[size]
        held.x[: len(raw.x)].copy_(raw.x)
        if held.gradient is not None and raw.gradient is not None:
            held.gradient[: len(raw.x)].copy_(raw.gradient)
        return held

    def _update(
        self, raw: Batch, scale: Tensor, variance: Tensor, adam: Any, room: int, tokens_seen: int
    ) -> Made | None:
        sae, kernels, n, n_own = self.sae, self.kernels, adam.numbers[2], adam.numbers[3]
        real = (kernels.numbers(len(raw.x), raw.x.device) < n_own).to(kernels.DTYPE)
        batch, given, squares, variance = self._prepared(raw, scale, variance)
        indices, values, flat = self._select(given, batch)
        if self._too_many(indices, flat):
            return None
        gaps, starts = (self.ragged, None) if flat is None else (False, flat.starts)
        kept = indices.clamp_min(0) if gaps else indices
        coefficient = 2 / (n * variance)
        decode = (kept, self._tables[1], sae.b_dec.data, batch.y, coefficient, n_own, self.prefixes, starts)
        if sae.loss_is_of == "code":
            code, decoded, extra, others = self._decode_code(batch, values, flat, decode, variance, tokens_seen)
        else:
            decoded, extra, others = self._decode(values, *decode), 0.0, {}
            code = Encoding(decoded.acts, kept)
        figures = (torch.stack([*decoded.by_token, squares]) * real).sum(1)
        last = kernels.row_times(real, decoded.error[-1])
        first = last if len(decoded.error) == 1 else kernels.row_times(real, decoded.error[0])
        sums = self._over_tokens(figures, first, last, real.float() @ batch.y)
        (error, whole, count, square), first, last, target = sums
        named = torch.where(indices < 0, sae.d_sae, indices) if gaps else indices
        pairs = kernels.Pairs(named, sae.d_sae, flat.tokens if flat else None)
        more, aux = None, torch.zeros_like(variance)
        if room:
            spread = (error - last.square().sum() / n).clamp_min(1e-30)
            w_enc, w_dec = self._tables
            found = revive(sae, w_enc, w_dec, given, decoded.error[-1], real.float(), spread, room, self._latents_of)
            aux, more = found.loss, found[1:]
        gradient, ends = kernels.count_latents(pairs, decoded, sae.tokens_since_fired, adam, more)
        gradient, aux = self._over_latents(gradient, aux)
        to_b_dec = first * coefficient - self._latents_of.sum(kernels.row_times(gradient, self._tables[0]))
        kernels.update_vector(self._state(sae.b_enc), gradient, adam)
        rows = self._table(sae.W_enc, 0), self._table(sae.W_dec, 1)
        self._update_rows((pairs, decoded, given, coefficient, ends), rows, adam, more)
        kernels.update_vector(self._state(sae.b_dec), to_b_dec, adam)
        for name, grad in others.items():
            multiple = sae.lr_multiples.get(name, 1.0)
            kernels.update_vector(self._state(sae.get_parameter(name)), grad, adam.faster(multiple))
        if type(sae).observe is not SparseAutoencoder.observe:
            sae.observe(Pass(batch, values, code, batch.y + decoded.error[-1], variance, tokens_seen))
        loss = whole * (coefficient / 2) + sae.config.aux_coefficient * aux + extra
        return Made(torch.stack([loss, aux, count / n, error, square]), target)

    def _update_rows(self, sums: tuple[Any, ...], rows: tuple[Rows, Rows], adam: Adam, more: More | None) -> None:
        """Both weight gradients, Adam and the unit norm."""
        self.kernels.update_rows(*sums, *rows, adam, more, self.prefixes)

    # Where several processes share the work, these say what the others know.

    _latents_of: Group = ALONE  # the processes that the latents are spread over

    def _among_all(self, indices: Tensor, values: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The selection, given by what every latent was selected."""
        return indices, values

    def _decode(self, values: Tensor, *arguments: Any) -> Decoded:
        return self.kernels.decode(values, *arguments)

    def _over_tokens(self, *sums: Tensor) -> tuple[Tensor, ...]:
        """Sums over the tokens of the batch."""
        return sums

    def _over_latents(self, gradient: Tensor, aux: Tensor) -> tuple[Tensor, Tensor]:
        """(the gradient of b_enc, AuxK) of the batch."""
        return gradient, aux

    def _prefixes(self) -> Tensor | None:
        """Sizes of nested dictionaries, for a loss that is the sum over them."""
        if self.sae.loss_is_of != "prefixes":
            return None
        return torch.tensor(self.sae.config.prefixes, dtype=torch.int32, device=self.sae.b_dec.device)

    def _prepared(self, raw: Batch, scale: Tensor, variance: Tensor) -> tuple[Batch, Tensor, Tensor, Tensor]:
        """(batch in the dictionary's units, centred input as it is stored, the targets' squared norms, variance)."""
        sae = self.sae
        if not sae.config.token_norm:
            y, given, squares = self.kernels.prepare(raw.x, scale, sae.b_dec)
        else:
            y = sae.prepared(raw.x * scale)[0]
            given, squares = sae.centre(y).to(self.kernels.DTYPE), y.square().sum(1)
            variance = torch.full_like(variance, sae.d_out)
        return Batch(y, y, raw.gradient), given, squares, variance

    def _too_many(self, indices: Tensor, flat: Flat | None) -> bool:
        """Whether tokens keep so many latents that dense products are faster."""
        width = indices.shape[1] if flat is None else -(-len(indices) // flat.shape[0])
        autograd = flat is not None and flat.shape[0] * flat.shape[1] > CHUNK_NUMBERS
        return autograd or width > self.kernels.widest(self.sae.d_sae)

    def _select(self, given: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Flat | None]:
        """(latents in int32, pre-activations in float32), [tokens, width] each, or [pairs] of the `Flat` code."""
        parts = -(-len(given) * self.sae.d_sae * self._latents_of.size // CHUNK_NUMBERS)
        if self.sae.ragged or parts <= 1:
            return self._select_rows(given, batch.gradient)
        step = -(-len(given) // parts // TILE) * TILE
        gradients = [None] * len(given) if batch.gradient is None else batch.gradient.split(step)
        found = [self._select_rows(rows, g) for rows, g in zip(given.split(step), gradients, strict=False)]
        return torch.cat([indices for indices, *_ in found]), torch.cat([values for _, values, _ in found]), None

    def _select_rows(self, given: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor, Flat | None]:
        sae, kernels = self.sae, self.kernels
        by_maxima = isinstance(sae, KLargest) and kernels.fits_groups(sae.d_sae, sae.config.k)
        wanted = by_maxima or (self.by_batch and kernels.fits_groups(sae.d_sae, 1))
        pre_acts, maxima = kernels.encode(given, self._rounded[0], sae.b_enc, wanted)
        if by_maxima:
            indices, values = kernels.top_k(pre_acts, sae.config.k, maxima)
            return *self._among_all(indices, values, values), None
        if self.by_batch:
            tokens, latents = kernels.batch_pairs(pre_acts, sae.config.k, maxima)
            return latents.int(), pre_acts[tokens, latents].float(), Flat.of_tokens(tokens, len(given))
        indices = sae.select(pre_acts, Selecting(given, gradient))
        if sae.ragged and given.device.type == "cuda":
            flat = Flat.of(indices)
            latents = flat.pairs(indices)
            return latents.int(), pre_acts[flat.tokens, latents].float(), flat
        values = kernels.values_at(pre_acts, indices.clamp_min(0), given, sae.W_enc.data.T, sae.b_enc.data)
        if sae.ragged:
            return indices.int(), values.masked_fill(indices < 0, PADDED), None
        return *self._among_all(indices.int(), values, pre_acts.gather(1, indices)), None

    def _decode_code(
        self,
        batch: Batch,
        values: Tensor,
        flat: Flat | None,
        decode: tuple[Any, ...],
        variance: Tensor,
        tokens_seen: int,
    ) -> tuple[Encoding, Decoded, Tensor, dict[str, Tensor]]:
        """(code, decoded, the extra term, gradients of parameters that only the code has): autograd for [tokens, width]
        alone."""
        sae, kept = self.sae, decode[0].long()
        if flat is not None:
            kept, values = flat.spread(kept, 0), flat.spread(values, PADDED)
        others = {n: p for n, p in sae.named_parameters() if n not in ("W_enc", "b_enc", "W_dec", "b_dec")}
        with torch.enable_grad():
            values = values.requires_grad_()
            acts = sae.activate(values, kept)
        given = acts.detach() if flat is None else flat.pairs(acts.detach())
        decoded = self.kernels.decode(given, *decode, rectify=False)
        to_acts = decoded.to_acts if flat is None else flat.spread(decoded.to_acts, 0.0)
        with torch.enable_grad():
            made = Pass(batch, values, Encoding(acts, kept), batch.y, variance, tokens_seen)
            extra = sae.extra_loss(made)
            roots = (acts,) if extra is None else (acts, extra)
            ends = (to_acts,) if extra is None else (to_acts, torch.ones_like(extra))
            found = torch.autograd.grad(roots, (values, *others.values()), ends)
        extra = torch.zeros_like(variance) if extra is None else extra.detach()
        to_values = found[0] if flat is None else flat.pairs(found[0])
        code = Encoding(acts.detach(), kept)
        return code, decoded._replace(to_acts=to_values), extra, dict(zip(others, found[1:], strict=True))

    def _state(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(weights, both moments) of a parameter, the moments made as Adam would where there are none."""
        state, own = self.optimiser.state[parameter], self.own(parameter.data, self._names[parameter])
        if not state:
            kept_in = self.moments_in if parameter.ndim > 1 else "float32"
            dtypes = moments.DTYPES[kept_in]
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(own, dtype=dtype) for dtype in dtypes)
            if kept_in == "int8":
                state["scales"] = self.own(parameter.data.new_zeros(self.sae.d_sae, 2), "scales").clone()
        return own, state["exp_avg"], state["exp_avg_sq"]

    @contextmanager
    def wide_moments(self) -> Iterator[None]:
        """For the time of the block the optimiser holds moments in float32, for an update by autograd."""
        if self.moments_in == "float32":
            yield
            return
        self._adam(0.0, 0, 0)  # they are made
        tables = [(self.optimiser.state[p], self._table(p, i)) for i, p in enumerate((self.sae.W_enc, self.sae.W_dec))]
        for number, (state, rows) in enumerate(tables):
            state["exp_avg"], state["exp_avg_sq"] = (t if number else t.T for t in moments.both_widened(rows))
        yield
        for number, (state, rows) in enumerate(tables):
            wide = (state[name] if number else state[name].T for name in ("exp_avg", "exp_avg_sq"))
            moments.narrow_both(next(wide), next(wide), rows, int(state["step"]))
            state["exp_avg"], state["exp_avg_sq"] = (t if number else t.T for t in (rows.mean, rows.square))

    def own(self, weights: Tensor, name: str) -> Tensor:
        """The part of the parameter `name`, or of a moment of it, that this process updates: all of it."""
        return weights

    def complete(self) -> None:
        """Brings the weights that other processes have updated."""

    def _table(self, parameter: Tensor, number: int) -> Rows:
        """The same by latent, [latents, width], and the weights as the products read them."""
        weights, mean, square = (t if number else t.T for t in self._state(parameter))
        scales = self.optimiser.state[parameter].get("scales", mean.new_empty(0, 2, dtype=torch.float32))
        return Rows(weights, mean, square, scales, self._rounded[number])

    def _adam(self, lr: float, n: int, n_own: int) -> Adam:
        """The numbers of this update, in a tensor that stays where it is; the count is kept beside the moments."""
        if self._numbers is None:
            for parameter in self.sae.parameters():
                self._state(parameter)
            self._steps = [self.optimiser.state[parameter]["step"] for parameter in self.sae.parameters()]
            tables = ((self.sae.W_enc.data.T, self.sae.selection_dtype), (self.sae.W_dec.data, torch.float32))
            self._rounded = [self.kernels.rounded(table, dtype) for table, dtype in tables]
            on_cpu = self.sae.b_dec.device.type == "cpu"  # where only the selection is rounded
            self._tables = [table for table, _ in tables] if on_cpu else self._rounded
            self._numbers = torch.empty(5, dtype=torch.float32, device=self.sae.b_dec.device)
            self._updates = int(self._steps[0])
        group = self.optimiser.param_groups[0]
        (beta1, beta2), t = group["betas"], self._updates + 1
        for place, number in enumerate((lr / (1 - beta1**t), (1 - beta2**t) ** -0.5, n, n_own, t)):
            self._numbers[place].fill_(number)
        return Adam(self._numbers, beta1, beta2, group["eps"])
