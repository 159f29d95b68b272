"""One update of a dictionary on a GPU without autograd: every gradient by hand, and never written where it is large."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sae.architectures.base import PADDED, SparseAutoencoder, aux_of
from sae.architectures.k_largest import KLargest
from sae.architectures.settings import Batch, Encoding, Pass, Selecting
from sae.kernels.sparse import HAS_TRITON

WIDEST = 512  # latents of one token that the kernels hold at once


class Made(NamedTuple):
    """What an update came to, as tensors: the loss, AuxK, mean l0; sums over the batch of the squared error, of the
    target's squares, and of the target's rows."""

    loss: Tensor
    aux: Tensor
    l0: Tensor
    squared_error: Tensor
    square: Tensor
    total: Tensor


class FusedStep:
    """Forward pass, gradients, Adam and the unit norm of one batch, as `SparseAutoencoder.losses` defines them.

    Differs from the reference in precision: products and the stored rows of input and error are in bfloat16, and the
    activations are the bfloat16 pre-activations; weights, moments and all sums are in float32.
    """

    def __init__(self, sae: SparseAutoencoder, optimiser: torch.optim.Adam):
        self.sae, self.optimiser = sae, optimiser
        self.reset()

    @staticmethod
    def fits(sae: SparseAutoencoder) -> bool:
        """Whether this dictionary of one hook point has the squared error and AuxK of a code ReLU(z) as its loss, on a GPU
        in bfloat16."""
        kind, base = type(sae), SparseAutoencoder
        plain = kind.activate is base.activate and not sae.lr_multiples
        extra = kind.extra_loss is not base.extra_loss and getattr(sae.config, "multi_topk", True)
        few = getattr(sae.config, "k", 1) <= WIDEST
        one = len(sae.config.reads) == 1 and sae.centred
        on_gpu = sae.b_dec.device.type == "cuda" and sae.selection_dtype == torch.bfloat16 and HAS_TRITON
        # The tiles are of a size that an H100 holds; they were tried on nothing else.
        on_gpu = on_gpu and torch.cuda.get_device_capability(sae.b_dec.device) >= (9, 0)
        return (
            plain
            and not extra
            and one
            and few
            and on_gpu
            and sae.d_in % 16 == 0 == sae.d_out % 16
            and sae.d_sae % 8 == 0
        )

    def reset(self) -> None:
        """Forgets what is derived from weights and moments; to be called when they change from outside."""
        self._rounded: list[Tensor] = []
        self._updates: int | None = None

    @torch.no_grad()
    def __call__(self, raw: Batch, scale: Tensor, variance: Tensor, lr: float, tokens_seen: int) -> Made | None:
        """One update on rows in the language model's units; None, and nothing done, where a token keeps too many latents."""
        from sae.kernels import cuda

        sae, n = self.sae, len(raw.x)
        if not self._rounded:
            self._rounded = [sae.W_enc.data.T.bfloat16(), sae.W_dec.data.bfloat16()]
        batch, given, square, variance = self._prepared(raw, scale, variance)
        indices, values = self._select(given, batch)
        if indices.shape[1] > WIDEST:
            return None
        kept = indices.clamp_min(0) if sae.ragged else indices
        coefficient = 2 / (n * variance)
        decoded = cuda.decode(values, kept, self._rounded[1], sae.b_dec, batch.y, coefficient)
        pairs = cuda.Pairs(torch.where(indices < 0, sae.d_sae, indices) if sae.ragged else indices, sae.d_sae)
        aux, more, to_b_dec = self._aux(batch.x, decoded.error, tokens_seen)
        adam = self._adam(lr)
        to_b_dec = to_b_dec + _column_sums(decoded.error) * coefficient
        gradient, ends = cuda.update_latents(pairs, decoded, self._state(sae.b_enc), sae.tokens_since_fired, adam, more)
        to_b_dec -= torch.mm(gradient[None].bfloat16(), self._rounded[0], out_dtype=torch.float32)[0]
        cuda.update_rows(
            pairs, decoded, given, coefficient, ends, self._rows(sae.W_enc, 0), self._rows(sae.W_dec, 1), adam, more
        )
        cuda.update_vector(self._state(sae.b_dec), to_b_dec, adam)
        if type(sae).observe is not SparseAutoencoder.observe:
            code = Encoding(decoded.acts, kept)
            sae.observe(Pass(batch, values, code, batch.y + decoded.error, variance, tokens_seen))
        error, count = torch.stack([decoded.squares, decoded.counts]).sum(1, dtype=torch.float64)
        loss = error / n / variance + sae.config.aux_coefficient * aux
        return Made(loss, aux, count / n, error, square, _column_sums(batch.y))

    def _prepared(self, raw: Batch, scale: Tensor, variance: Tensor) -> tuple[Batch, Tensor, Tensor, Tensor]:
        """(batch in the dictionary's units, centred input in bfloat16, sum of the target's squares, variance)."""
        from sae.kernels import cuda

        sae = self.sae
        if not sae.config.token_norm:
            y, given, squares = cuda.prepare(raw.x, scale, sae.b_dec)
            return Batch(y, y, raw.gradient), given, squares.sum(dtype=torch.float64), variance
        x = sae.prepared(raw.x * scale)[0]
        square, variance = x.square().sum(dtype=torch.float64), torch.full_like(variance, sae.d_out)
        return Batch(x, x, raw.gradient), sae.centre(x).bfloat16(), square, variance

    def _select(self, given: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(latents in int32, pre-activations in float32), [tokens, width] each."""
        from sae.kernels import cuda

        sae = self.sae
        by_maxima = isinstance(sae, KLargest) and cuda.fits_groups(sae.d_sae, sae.config.k)
        pre_acts, maxima = cuda.encode(given, self._rounded[0], sae.b_enc, by_maxima)
        if by_maxima:
            return cuda.top_k(pre_acts, sae.config.k, maxima)
        indices = sae.select(pre_acts, Selecting(given, batch.gradient))
        if sae.ragged:  # kernels are compiled for a width, so widths are powers of two
            width = indices.shape[1]
            indices = F.pad(indices, (0, (1 << (width - 1).bit_length()) - width), value=-1)
        values = pre_acts.gather(1, indices.clamp_min(0)).float()
        return indices.int(), values.masked_fill(indices < 0, PADDED) if sae.ragged else values

    def _state(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(weights, both moments) of a parameter, the moments made as Adam would where there are none."""
        state = self.optimiser.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return parameter.data, state["exp_avg"], state["exp_avg_sq"]

    def _rows(self, parameter: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same by latent, [latents, width], and the weights in bfloat16."""
        weights, mean, square = (t if number else t.T for t in self._state(parameter))
        return weights, mean, square, self._rounded[number]

    def _adam(self, lr: float):
        """The numbers of this update; its count is kept beside the moments, as Adam keeps it."""
        from sae.kernels import cuda

        for parameter in self.sae.parameters():
            self._state(parameter)
        steps = [self.optimiser.state[p]["step"] for p in self.sae.parameters()]
        if self._updates is None:
            self._updates = int(steps[0])
        self._updates += 1
        torch._foreach_add_(steps, 1)  # pyright: ignore[reportPrivateImportUsage]
        group = self.optimiser.param_groups[0]
        (beta1, beta2), t = group["betas"], self._updates
        return cuda.Adam(lr / (1 - beta1**t), (1 - beta2**t) ** -0.5, beta1, beta2, group["eps"])

    def _aux(
        self, x: Tensor, error: Tensor, tokens_seen: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor] | None, Tensor]:
        """(AuxK, its gradients for the dead latents' rows, its gradient for b_dec)."""
        sae, config = self.sae, self.sae.config
        nothing = x.new_zeros(()), None, torch.zeros_like(sae.b_dec)
        if tokens_seen < config.dead_after_tokens or not config.k_aux or not config.aux_coefficient:
            return nothing  # no latent can be dead yet: the GPU need not be asked
        dead = sae.dead().nonzero()[:, 0]
        if len(dead) == 0:
            return nothing
        with torch.enable_grad():
            b_dec, b_enc = sae.b_dec.detach().requires_grad_(), sae.b_enc.detach()[dead].requires_grad_()
            w_enc, w_dec = sae.W_enc.detach().T[dead].requires_grad_(), sae.W_dec.detach()[dead].requires_grad_()
            aux = aux_of(x - b_dec, -error.float(), w_enc.T, b_enc, w_dec, config.k_aux)
            found = torch.autograd.grad(aux * config.aux_coefficient, (w_enc, w_dec, b_enc, b_dec))
        slots = torch.full((sae.d_sae,), -1, dtype=torch.int32, device=x.device)
        slots[dead] = torch.arange(len(dead), dtype=torch.int32, device=x.device)
        more = slots, found[0].contiguous(), found[1].contiguous(), found[2].contiguous()
        return aux.detach(), more, found[3]


def _column_sums(rows: Tensor) -> Tensor:
    """Sum over the rows [width] in float32, as a product with ones: a third of the time of `sum`."""
    ones = torch.ones(1, len(rows), dtype=rows.dtype, device=rows.device)
    return (torch.mm(ones, rows, out_dtype=torch.float32) if rows.dtype == torch.bfloat16 else ones @ rows)[0]
