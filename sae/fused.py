"""One update of a dictionary without autograd: every gradient by hand, and never written where it is large."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sae.architectures.base import PADDED, SparseAutoencoder
from sae.architectures.k_largest import KLargest
from sae.architectures.settings import Batch, Encoding, Pass, Selecting
from sae.dead_latents import DeadCount, revive
from sae.graphs import Graphs
from sae.kernels.sparse import HAS_TRITON

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
    selection is in float32.
    """

    def __init__(self, sae: SparseAutoencoder, optimiser: torch.optim.Adam):
        self.sae, self.optimiser, self.kernels = sae, optimiser, _kernels(sae.b_dec.device)
        self.recorded = sae.b_dec.device.type == "cuda" and not sae.ragged  # else the shapes are not known beforehand
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
        self._rows: dict[int, Batch] = {}
        self._dead, self._graphs = DeadCount(self.sae), Graphs()

    @torch.no_grad()
    def __call__(self, raw: Batch, scale: Tensor, variance: Tensor, lr: float, tokens_seen: int) -> Made | None:
        """One update on rows in the language model's units; None, and nothing done, where a token keeps too many latents."""
        n = len(raw.x)
        adam = self._adam(lr, n)
        room = self._dead.room(n, tokens_seen)
        if not self.recorded:
            made = self._update(raw, scale, variance, adam, room, tokens_seen)
        else:
            held = self._held(raw, -(-n // TILE) * TILE)
            key = (len(held.x), room)
            made = self._graphs(key, lambda: self._update(held, scale, variance, adam, room, tokens_seen))
        if made is not None:
            self._updates += 1
            torch._foreach_add_(self._steps, 1)  # pyright: ignore[reportPrivateImportUsage]
            self._dead.ask(n, tokens_seen)
        return made

    def _held(self, raw: Batch, size: int) -> Batch:
        """The rows in tensors that stay where they are, followed by rows that do not count."""
        if size not in self._rows:
            x, gradient = (None if t is None else t.new_zeros(size, t.shape[1]) for t in (raw.x, raw.gradient))
            assert x is not None
            self._rows[size] = Batch(x, x, gradient)
        held = self._rows[size]
        held.x[: len(raw.x)].copy_(raw.x)
        if held.gradient is not None and raw.gradient is not None:
            held.gradient[: len(raw.x)].copy_(raw.gradient)
        return held

    def _update(
        self, raw: Batch, scale: Tensor, variance: Tensor, adam: Any, room: int, tokens_seen: int
    ) -> Made | None:
        sae, kernels, n = self.sae, self.kernels, adam.numbers[2]
        real = (kernels.numbers(len(raw.x), raw.x.device) < n).to(kernels.DTYPE)
        batch, given, squares, variance = self._prepared(raw, scale, variance)
        indices, values = self._select(given, batch)
        if indices.shape[1] > kernels.widest(sae.d_sae):
            return None
        kept = indices.clamp_min(0) if sae.ragged else indices
        coefficient = 2 / (n * variance)
        decode = (kept, self._tables[1], sae.b_dec.data, batch.y, coefficient, n, self.prefixes)
        if sae.loss_is_of == "code":
            decoded, extra, others = self._decode_code(batch, values, decode, variance, tokens_seen)
        else:
            decoded, extra, others = kernels.decode(values, *decode), 0.0, {}
        to_b_dec = kernels.row_times(real, decoded.error[0]) * coefficient
        error, whole, count, square = (torch.stack([*decoded.by_token, squares]) * real).sum(1)
        pairs = kernels.Pairs(torch.where(indices < 0, sae.d_sae, indices) if sae.ragged else indices, sae.d_sae)
        more, aux = None, torch.zeros_like(variance)
        if room:
            w_enc, w_dec = self._tables
            found = revive(sae, w_enc, w_dec, given, decoded.error[-1], real.float(), error, room)
            aux, more = found.loss, found[1:]
        gradient, ends = kernels.update_latents(
            pairs, decoded, self._state(sae.b_enc), sae.tokens_since_fired, adam, more
        )
        to_b_dec -= kernels.row_times(gradient, self._tables[0])
        kernels.update_rows(
            pairs, decoded, given, coefficient, ends, self._latents(sae.W_enc, 0), self._latents(sae.W_dec, 1), adam,
            more, self.prefixes,
        )  # fmt: skip
        kernels.update_vector(self._state(sae.b_dec), to_b_dec, adam)
        for name, grad in others.items():
            multiple = sae.lr_multiples.get(name, 1.0)
            kernels.update_vector(self._state(sae.get_parameter(name)), grad, adam.faster(multiple))
        if type(sae).observe is not SparseAutoencoder.observe:
            code = Encoding(decoded.acts, kept)
            sae.observe(Pass(batch, values, code, batch.y + decoded.error[-1], variance, tokens_seen))
        loss = whole * (coefficient / 2) + sae.config.aux_coefficient * aux + extra
        return Made(torch.stack([loss, aux, count / n, error, square]), real.float() @ batch.y)

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

    def _select(self, given: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(latents in int32, pre-activations in float32), [tokens, width] each."""
        if not self.recorded:
            return self._select_rows(given, batch.gradient)
        parts = -(-len(given) * self.sae.d_sae // CHUNK_NUMBERS)
        step = -(-len(given) // parts // TILE) * TILE
        gradients = [None] * len(given) if batch.gradient is None else batch.gradient.split(step)
        found = [self._select_rows(rows, g) for rows, g in zip(given.split(step), gradients, strict=False)]
        if len(found) == 1:
            return found[0]
        return torch.cat([indices for indices, _ in found]), torch.cat([values for _, values in found])

    def _select_rows(self, given: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
        sae, kernels = self.sae, self.kernels
        by_maxima = isinstance(sae, KLargest) and kernels.fits_groups(sae.d_sae, sae.config.k)
        pre_acts, maxima = kernels.encode(given, self._rounded[0], sae.b_enc, by_maxima)
        if by_maxima:
            return kernels.top_k(pre_acts, sae.config.k, maxima)
        indices = sae.select(pre_acts, Selecting(given, gradient))
        if sae.ragged and kernels.ONE_WIDTH:  # few widths to compile for
            width = indices.shape[1]
            indices = F.pad(indices, (0, (1 << (width - 1).bit_length()) - width), value=-1)
        values = kernels.values_at(pre_acts, indices.clamp_min(0), given, sae.W_enc.data.T, sae.b_enc.data)
        return indices.int(), values.masked_fill(indices < 0, PADDED) if sae.ragged else values

    def _decode_code(
        self, batch: Batch, values: Tensor, decode: tuple[Any, ...], variance: Tensor, tokens_seen: int
    ) -> tuple[Any, Tensor, dict[str, Tensor]]:
        """(decoded, the extra term, gradients of parameters that only the code has): autograd for [tokens, width] alone."""
        sae, kept = self.sae, decode[0]
        others = {n: p for n, p in sae.named_parameters() if n not in ("W_enc", "b_enc", "W_dec", "b_dec")}
        with torch.enable_grad():
            values = values.requires_grad_()
            acts = sae.activate(values, kept.long())
        decoded = self.kernels.decode(acts.detach(), *decode, rectify=False)
        with torch.enable_grad():
            made = Pass(batch, values, Encoding(acts, kept.long()), batch.y, variance, tokens_seen)
            extra = sae.extra_loss(made)
            roots = (acts,) if extra is None else (acts, extra)
            ends = (decoded.to_acts,) if extra is None else (decoded.to_acts, torch.ones_like(extra))
            found = torch.autograd.grad(roots, (values, *others.values()), ends)
        extra = torch.zeros_like(variance) if extra is None else extra.detach()
        return decoded._replace(to_acts=found[0]), extra, dict(zip(others, found[1:], strict=True))

    def _state(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(weights, both moments) of a parameter, the moments made as Adam would where there are none."""
        state = self.optimiser.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return parameter.data, state["exp_avg"], state["exp_avg_sq"]

    def _latents(self, parameter: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same by latent, [latents, width], and the weights in bfloat16."""
        weights, mean, square = (t if number else t.T for t in self._state(parameter))
        return weights, mean, square, self._rounded[number]

    def _adam(self, lr: float, n_tokens: int):
        """The numbers of this update, in a tensor that stays where it is; the count is kept beside the moments."""
        if self._numbers is None:
            for parameter in self.sae.parameters():
                self._state(parameter)
            self._steps = [self.optimiser.state[parameter]["step"] for parameter in self.sae.parameters()]
            tables = ((self.sae.W_enc.data.T, self.sae.selection_dtype), (self.sae.W_dec.data, torch.float32))
            self._rounded = [self.kernels.rounded(table, dtype) for table, dtype in tables]
            on_cpu = self.sae.b_dec.device.type == "cpu"  # where only the selection is rounded
            self._tables = [table for table, _ in tables] if on_cpu else self._rounded
            self._numbers = torch.empty(3, dtype=torch.float32, device=self.sae.b_dec.device)
            self._updates = int(self._steps[0])
        group = self.optimiser.param_groups[0]
        (beta1, beta2), t = group["betas"], self._updates + 1
        for place, number in enumerate((lr / (1 - beta1**t), (1 - beta2**t) ** -0.5, n_tokens)):
            self._numbers[place].fill_(number)
        return self.kernels.Adam(self._numbers, beta1, beta2, group["eps"])
