"""One update of a dictionary without autograd: its gradients are hand-written, and large ones never go to memory.

`FusedStep._update` is the whole update in order: prepare, select, decode, sum over processes, AuxK, gradients and Adam,
figures. Shapes: n tokens, k latents per token (or p pairs of a `FlatCode`), m latents, d numbers per activation, l
nested prefixes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.architectures.base import PADDED, SparseAutoencoder
from sae.architectures.settings import Batch, Encoding, TrainingPass
from sae.kernels.sparse import HAS_TRITON
from sae.kernels.step_types import AdamStep, AuxGradients, Decoded, DecodeInput, RowSums, StepKernels
from sae.training.adam_state import AdamState
from sae.training.cuda_graphs import CudaGraphs
from sae.training.dead_latents import DeadLatentCount, aux_loss_and_gradients
from sae.training.exchange import Alone, Exchange, RowUpdate
from sae.training.latent_selection import TILE, LatentSelection, Selection

SHARED_PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")  # those of every architecture; others belong to one


def _kernels_for(device: torch.device) -> StepKernels:
    if device.type == "cuda":
        from sae.kernels import cuda_step

        return cuda_step
    from sae.kernels import cpu_step

    return cpu_step


class StepFigures(NamedTuple):
    """The figures of an update, as tensors, so that Python does not wait for the GPU.

    figures [5]: loss, AuxK, mean l0, sum of squared errors, sum of the target's squares; target_sum [d]: the sum of the
    target's rows.
    """

    figures: Float[Tensor, " 5"]
    target_sum: Float[Tensor, " d"]


class _Input(NamedTuple):
    """A batch in the dictionary's units.

    `centred` [n, d] is the encoder's input as it is stored; `target_squares` [n] are squared norms of the target.
    """

    batch: Batch
    centred: Tensor
    target_squares: Tensor
    variance: Tensor


class _Code(NamedTuple):
    """The decoded code, and what a loss with a term of the code adds: that term and gradients by parameter name."""

    encoding: Encoding
    decoded: Decoded
    extra_loss: Tensor | float
    extra_gradients: dict[str, Tensor]


class FusedStep:
    """Forward pass, gradients, Adam and the unit norm for one batch, as `SparseAutoencoder.losses` defines them.

    Differs from that reference on a GPU in precision: matrix products and the stored rows of input and error are in
    bfloat16, and activations are the bfloat16 pre-activations; weights, moments and all sums are in float32. On a CPU
    everything but the selection is in float32. `moments_in` keeps Adam's moments in fewer bits (`kernels.moments`).
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        optimiser: torch.optim.Adam,
        exchange: Exchange | None = None,
        moments_in: str = "float32",
    ):
        self.sae = sae
        self.exchange = exchange or Alone()
        self.kernels = _kernels_for(sae.b_dec.device)
        self.device = sae.b_dec.device

        self.selection = LatentSelection(sae, self.kernels, self.exchange)
        self.adam = AdamState(sae, optimiser, self.kernels, self.exchange, moments_in=moments_in)
        # A CUDA graph needs shapes that are known beforehand: k per token, or n * k pairs per batch.
        self.is_recorded = self.device.type == "cuda" and (self.selection.is_flat_batch or not sae.ragged)

        self.prefixes: Tensor | None = None
        if sae.loss_terms == "prefixes":
            self.prefixes = torch.tensor(sae.config.prefixes, dtype=torch.int32, device=self.device)

        self.reset()

    @staticmethod
    def fits(sae: SparseAutoencoder) -> bool:
        """Whether the gradients of this dictionary's loss are known here, on a device with kernels for it.

        On a GPU that is compute capability 9.0 or more (tiles have the size that an H100 holds and were tried on
        nothing else) with selection in bfloat16; on a CPU always.
        """
        device = sae.b_dec.device
        if sae.loss_terms is None or len(sae.config.reads) > 1 or not sae.centred:
            return False
        if device.type == "cuda":
            is_supported = HAS_TRITON and torch.cuda.get_device_capability(device) >= (9, 0)
            has_sizes = sae.d_in % 16 == 0 and sae.d_out % 16 == 0 and sae.d_sae % 8 == 0
            if not is_supported or not has_sizes or sae.selection_dtype != torch.bfloat16:
                return False

        return device.type in ("cpu", "cuda") and getattr(sae.config, "k", 1) <= _kernels_for(device).widest(sae.d_sae)

    def reset(self) -> None:
        """Forgets everything derived from weights and moments; call it when something else has changed them."""
        self.adam.reset()
        self._static_batches: dict[int, Batch] = {}
        self._dead_count, self._graphs = DeadLatentCount(self.sae, self.exchange.latent_processes), CudaGraphs()

    @torch.no_grad()
    def __call__(
        self, raw: Batch, *, scale: Float[Tensor, " d"], variance: Float[Tensor, ""], lr: float, tokens_seen: int,
        counts: list[int],
    ) -> StepFigures | None:  # fmt: skip
        """One update on rows in the language model's units; `counts` are the numbers of rows of all replicas.

        Returns None, with nothing changed, if tokens keep so many latents that dense products are faster.
        """
        n_tokens = sum(counts)
        adam = self.adam.step(lr, n_tokens, len(raw.x))
        n_dead_slots = self._dead_count.slots(n_tokens, tokens_seen)

        # BatchTopK takes its n * k pairs from all rows, so padding rows would win some: it is recorded only if none are
        # needed.
        if not self.is_recorded or (self.selection.is_flat_batch and n_tokens % TILE):
            figures = self._update(raw, scale, variance, adam, n_dead_slots=n_dead_slots, tokens_seen=tokens_seen)
        else:
            # Processes must record the same update at the same time, so all round the largest share up.
            static = self._static_batch(raw, -(-max(counts) // TILE) * TILE)

            def update() -> StepFigures | None:
                return self._update(static, scale, variance, adam, n_dead_slots=n_dead_slots, tokens_seen=tokens_seen)

            figures = self._graphs((len(static.x), n_dead_slots), update)

        if figures is not None:
            self.adam.count_update()
            self._dead_count.request(n_tokens, tokens_seen)

        return figures

    def _update(
        self, raw: Batch, scale: Tensor, variance: Tensor, adam: AdamStep, *, n_dead_slots: int, tokens_seen: int
    ) -> StepFigures | None:
        sae, kernels = self.sae, self.kernels
        n_tokens = adam.n_tokens  # a tensor: a recorded graph must read the size of the batch from the device

        # 1. The batch in the dictionary's units. Rows beyond this process's own are padding and count as 0.
        is_counted = (kernels.numbers(len(raw.x), self.device) < adam.n_own_tokens).to(kernels.DTYPE)
        batch, centred, target_squares, variance = self._prepared(raw, scale, variance)

        # 2. Selection.
        selection = self.selection.select(centred, batch, self.adam.rounded[0])
        if self.selection.is_too_wide(selection):
            return None

        # 3. Decoding: errors, and the gradient of every activation.
        coefficient = 2 / (n_tokens * variance)
        code = self._decode(batch, selection, coefficient, adam, variance=variance, tokens_seen=tokens_seen)
        decoded = code.decoded

        # 4. Sums over the tokens of all processes. error[0] is x_hat - y summed over all prefixes (for b_dec's gradient),
        # error[-1] that of the whole dictionary (for AuxK); without prefixes they are one.
        last_error = kernels.row_times(is_counted, decoded.error[-1])
        first_error = last_error if len(decoded.error) == 1 else kernels.row_times(is_counted, decoded.error[0])
        sums, first_error, last_error, target_sum = self.exchange.sum_over_tokens(
            (torch.stack([*decoded.by_token, target_squares]) * is_counted).sum(1),
            first_error,
            last_error,
            is_counted.float() @ batch.y,
        )
        square_error, prefix_error, n_active, target_square = sums

        # 5. AuxK: its loss, and gradients in rows of their own for the dead latents.
        aux_loss, aux = torch.zeros_like(variance), None
        if n_dead_slots:
            aux_loss, aux = aux_loss_and_gradients(
                sae,
                (self.adam.tables[0], self.adam.tables[1]),
                centred=centred,
                error=decoded.error[-1],
                is_counted=is_counted.float(),
                # ||e - mean e||^2 of the batch, from sums that exist already
                spread=(square_error - last_error.square().sum() / n_tokens).clamp_min(1e-30),
                n_slots=n_dead_slots,
                processes=self.exchange.latent_processes,
            )

        # 6. Gradients and Adam.
        pairs = self.selection.sorted_pairs(selection)
        grad_b_enc, ends = kernels.bias_gradient_and_firings(pairs, decoded, sae.tokens_since_fired, adam, aux=aux)
        grad_b_enc, aux_loss = self.exchange.finish_latent_sums(grad_b_enc, aux_loss, sae.tokens_since_fired)
        row_sums = RowSums(pairs, decoded, centred, coefficient, ends=ends)
        self._apply(row_sums, adam, aux, grad_b_enc=grad_b_enc, grad_output=first_error * coefficient, code=code)

        # 7. Figures.
        self._observe(batch, selection, code, variance=variance, tokens_seen=tokens_seen)
        # coefficient is 2 / (n variance), as gradients need it; the loss has 1 / (n variance).
        loss = prefix_error * (coefficient / 2) + sae.config.aux_coefficient * aux_loss + code.extra_loss
        figures = torch.stack([loss, aux_loss, n_active / n_tokens, square_error, target_square])
        return StepFigures(figures, target_sum)

    def _observe(self, batch: Batch, selection: Selection, code: _Code, *, variance: Tensor, tokens_seen: int) -> None:
        """Shows the pass to an architecture that learns from it by other means than gradients."""
        if type(self.sae).observe is not SparseAutoencoder.observe:
            x_hat = batch.y + code.decoded.error[-1]
            self.sae.observe(
                TrainingPass(batch, selection.values, code.encoding, x_hat, variance=variance, tokens_seen=tokens_seen)
            )

    def _apply(
        self,
        sums: RowSums,
        adam: AdamStep,
        aux: AuxGradients | None,
        *,
        grad_b_enc: Tensor,
        grad_output: Tensor,
        code: _Code,
    ) -> None:
        """Adam on b_enc, both weight tables, b_dec, and the parameters that only this architecture has."""
        sae, update_vector = self.sae, self.kernels.update_vector
        # b_dec is added to the output and subtracted from the input, so its gradient has a part through the encoder.
        through_encoder = self.kernels.row_times(grad_b_enc, self.adam.tables[0])
        grad_b_dec = grad_output - self.exchange.latent_processes.all_reduce_sum(through_encoder)

        update_vector(self.adam.of(sae.b_enc), grad_b_enc, adam)
        update = RowUpdate(
            sums, encoder=self.adam.encoder(), decoder=self.adam.decoder(), adam=adam, aux=aux, prefixes=self.prefixes,
            copies=[*self.adam.rounded, *self.adam.tables],
        )  # fmt: skip
        self.exchange.update_rows(self.kernels, update)
        update_vector(self.adam.of(sae.b_dec), grad_b_dec, adam)
        for name, gradient in code.extra_gradients.items():
            faster = adam.with_lr_multiple(sae.lr_multiples.get(name, 1.0))
            update_vector(self.adam.of(sae.get_parameter(name)), gradient, faster)

    def _static_batch(self, raw: Batch, size: int) -> Batch:
        """The rows copied into tensors that stay where they are (a CUDA graph reads those), made for `size` rows.

        Rows beyond those of `raw` still hold an earlier batch: `is_counted` and `n_own_tokens` leave them out.
        """
        if size not in self._static_batches:
            x = raw.x.new_zeros(size, raw.x.shape[1])
            gradient = None if raw.gradient is None else raw.gradient.new_zeros(size, raw.gradient.shape[1])
            self._static_batches[size] = Batch(x, x, gradient)

        static = self._static_batches[size]
        static.x[: len(raw.x)].copy_(raw.x)
        if static.gradient is not None and raw.gradient is not None:
            static.gradient[: len(raw.x)].copy_(raw.gradient)

        return static

    def _prepared(self, raw: Batch, scale: Tensor, variance: Tensor) -> _Input:
        sae = self.sae
        if not sae.config.token_norm:
            y, centred, target_squares = self.kernels.prepare(raw.x, scale, sae.b_dec)
        else:
            y = sae.prepared(raw.x * scale).x
            centred, target_squares = sae.centre(y).to(self.kernels.DTYPE), y.square().sum(1)
            variance = torch.full_like(variance, sae.d_out)  # as in `SparseAutoencoder.losses`
        return _Input(Batch(y, y, raw.gradient), centred, target_squares, variance)

    def _decode(
        self,
        batch: Batch,
        selection: Selection,
        coefficient: Tensor,
        adam: AdamStep,
        *,
        variance: Tensor,
        tokens_seen: int,
    ) -> _Code:
        # -1 cannot be an index. The value of padding is PADDED, so latent 0 gets no activation from it.
        latents = selection.latents.clamp_min(0) if self.selection.has_padding(selection) else selection.latents
        decoding = DecodeInput(
            latents,
            table=self.adam.tables[1],
            bias=self.sae.b_dec.data,
            target=batch.y,
            coefficient=coefficient,
            n_counted=adam.n_own_tokens,
            prefixes=self.prefixes,
            starts=selection.flat.starts if selection.flat else None,
        )
        if self.sae.loss_terms == "code":
            return self._decode_with_code_loss(batch, selection, decoding, variance=variance, tokens_seen=tokens_seen)

        decoded = self.exchange.decode(self.kernels, selection.values, decoding)
        return _Code(Encoding(decoded.acts, latents), decoded, 0.0, {})

    def _decode_with_code_loss(
        self, batch: Batch, selection: Selection, decoding: DecodeInput, *, variance: Tensor, tokens_seen: int
    ) -> _Code:
        """As `_decode`, if the loss has a term of the code: autograd, but over the [n, k] selected values alone."""
        sae, flat = self.sae, selection.flat
        latents, values = decoding.latents.long(), selection.values
        if flat is not None:
            latents, values = flat.scatter(latents, 0), flat.scatter(values, PADDED)

        own_parameters = {n: p for n, p in sae.named_parameters() if n not in SHARED_PARAMETERS}

        with torch.enable_grad():
            values = values.requires_grad_()
            acts = sae.activate(values, latents)

        stored_acts = acts.detach() if flat is None else flat.gather(acts.detach())
        # Not through `exchange`: neither Replicas nor LatentShards takes a loss of the code, so this process is alone.
        decoded = self.kernels.decode(stored_acts, decoding, rectify=False)
        grad_acts = decoded.grad_acts if flat is None else flat.scatter(decoded.grad_acts, 0.0)

        with torch.enable_grad():
            code = Encoding(acts, latents)
            extra = sae.extra_loss(
                TrainingPass(batch, values, code, batch.y, variance=variance, tokens_seen=tokens_seen)
            )
            roots = (acts,) if extra is None else (acts, extra)
            root_gradients = (grad_acts,) if extra is None else (grad_acts, torch.ones_like(extra))
            grad_values, *own_gradients = torch.autograd.grad(roots, (values, *own_parameters.values()), root_gradients)

        if flat is not None:
            grad_values = flat.gather(grad_values)

        return _Code(
            Encoding(acts.detach(), latents),
            decoded._replace(grad_acts=grad_values),
            torch.zeros_like(variance) if extra is None else extra.detach(),
            dict(zip(own_parameters, own_gradients, strict=True)),
        )

    def gather_weights(self) -> None:
        """Brings the weights that other processes have updated."""
        self.exchange.gather_weights(self.sae)
