"""One update of a dictionary without autograd: its gradients are hand-written, and large ones never go to memory.

An update prepares the batch and selects latents; `FusedStep._finish` is the rest in order: decode, sum over processes,
AuxK, gradients and Adam, figures. Shapes: n tokens, k latents per token (or p pairs of a `FlatCode`), m latents, d numbers per activation, l
nested prefixes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.architectures.base import SparseAutoencoder
from sae.architectures.flat_code import CodeLossByHand
from sae.architectures.settings import Batch, TrainingPass
from sae.kernels.dense import product
from sae.kernels.sparse import HAS_TRITON
from sae.kernels.step_types import Decoded, RowSums, StepKernels
from sae.training.adam_state import AdamState
from sae.training.code_decoding import CodeDecoding, DecodedCode, PreparedBatch, Scales, UpdateInput
from sae.training.cuda_graphs import CudaGraphs, SideStream
from sae.training.dead_latents import DeadLatentCount, aux_loss_and_gradients
from sae.training.exchange import Alone, BatchSums, Exchange, TokenSums, average_buffers
from sae.training.latent_selection import TILE, LatentSelection, Selection
from sae.training.parameter_update import ParameterUpdate

MOST_SIZES = 3  # of batches whose updates in two parts stay recorded; each holds all pre-activations of a batch


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


class _RaggedGraphs(NamedTuple):
    """The recordings of an update in two parts: one that counts pairs, and one per number of places for them.

    The second part reads what the first wrote, at its address.
    """

    counting: CudaGraphs
    finishing: CudaGraphs


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
        # A CUDA graph needs shapes that are known beforehand.
        has_known_shapes = not sae.ragged or self.selection.is_flat_batch or self.selection.is_counted_first
        self.is_recorded = self.device.type == "cuda" and has_known_shapes

        self.prefixes: Tensor | None = None
        if sae.loss_terms == "prefixes":
            self.prefixes = torch.tensor(sae.config.prefixes, dtype=torch.int32, device=self.device)
        self.side = SideStream(self.device)
        self.decoding = CodeDecoding(sae, self.kernels, self.exchange, prefixes=self.prefixes, side=self.side)
        self.parameters = ParameterUpdate(
            sae, self.kernels, self.exchange, adam=self.adam, side=self.side, prefixes=self.prefixes
        )
        self._tokens_seen = torch.zeros((), dtype=torch.float64, device=self.device)

        self.reset()

    @staticmethod
    def fits(sae: SparseAutoencoder) -> bool:
        """Whether the gradients of this dictionary's loss are known here, on a device with kernels for it.

        On a GPU that is compute capability 9.0 or more (tiles have the size that an H100 holds and were tried on
        nothing else) with selection in bfloat16; on a CPU always.
        """
        device = sae.b_dec.device
        if sae.loss_terms is None:
            return False
        if device.type == "cuda":
            is_supported = HAS_TRITON and torch.cuda.get_device_capability(device) >= (9, 0)
            has_sizes = sae.d_in % 16 == 0 and sae.d_out % 16 == 0 and sae.d_sae % 8 == 0
            if not is_supported or not has_sizes or sae.selection_dtype != torch.bfloat16:
                return False
            if sae.loss_terms == "code" and not isinstance(sae, CodeLossByHand):
                return False

        return device.type in ("cpu", "cuda") and sae.k_in_loss <= _kernels_for(device).widest(sae.d_sae)

    def reset(self) -> None:
        """Forgets everything derived from weights and moments; call it when something else has changed them."""
        self.adam.reset()
        self._static_batches: dict[int, Batch] = {}
        self._ragged_graphs: dict[int, _RaggedGraphs] = {}  # by the number of rows
        self._dead_count, self._graphs = DeadLatentCount(self.sae, self.exchange.latent_processes), CudaGraphs()

    @torch.no_grad()
    def __call__(
        self, raw: Batch, *, scales: Scales, variance: Float[Tensor, ""], lr: float, tokens_seen: int, counts: list[int]
    ) -> StepFigures | None:
        """One update on rows in the language model's units; `counts` are the numbers of rows of all replicas.

        Returns None, with nothing changed, if tokens keep so many latents that dense products are faster.
        """
        n_tokens = sum(counts)
        adam = self.adam.step(lr, n_tokens, len(raw.x))
        n_dead_slots = self._dead_count.slots(n_tokens, tokens_seen)
        self._tokens_seen.fill_(tokens_seen)
        update = UpdateInput(
            scales, variance, adam, n_dead_slots, tokens_seen=tokens_seen, tokens_seen_on_device=self._tokens_seen,
            n_tokens=n_tokens,
        )  # fmt: skip

        # Processes must record the same update at the same time, so all round the largest share up.
        size = -(-max(counts) // TILE) * TILE
        # BatchTopK takes its n * k pairs from all rows, so padding rows would win some: it is recorded only if none are
        # needed in any process.
        if not self.is_recorded or (self.selection.is_flat_batch and set(counts) != {size}):
            figures = self._in_one_part(raw, update)
        else:
            static = self._static_batch(raw, size)
            if self.selection.is_counted_first:
                figures = self._in_two_parts(static, update)
            else:
                figures = self._graphs((len(static.x), n_dead_slots), lambda: self._in_one_part(static, update))

        if figures is not None:
            self.adam.count_update()
            self._dead_count.request(n_tokens, tokens_seen)

        return figures

    def _in_one_part(self, batch: Batch, update: UpdateInput) -> StepFigures | None:
        """Selection, then the rest."""
        prepared = self._prepared(batch, update)
        selection = self.selection.select(
            prepared.centred, prepared.batch, self.adam.rounded[0], n_tokens=update.n_tokens
        )
        return None if self.selection.is_too_wide(selection) else self._finish(prepared, selection, update)

    def _in_two_parts(self, static: Batch, update: UpdateInput) -> StepFigures | None:
        """From two recordings. In between Python reads the number of pairs, the one number that it waits for."""
        size, selection = len(static.x), self.selection
        if size not in self._ragged_graphs and len(self._ragged_graphs) == MOST_SIZES:
            self._ragged_graphs.pop(next(iter(self._ragged_graphs)))
        graphs = self._ragged_graphs.setdefault(size, _RaggedGraphs(CudaGraphs(), CudaGraphs()))

        def count() -> tuple[PreparedBatch, Any]:
            prepared = self._prepared(static, update)
            return prepared, selection.count(prepared.centred, self.adam.rounded[0], prepared.is_counted)

        prepared, counted = graphs.counting(size, count)
        room = selection.room(counted)
        if room is None:
            return None

        key = room, update.n_dead_slots
        return graphs.finishing(key, lambda: self._finish(prepared, selection.fill(counted, room), update))

    def _finish(self, prepared: PreparedBatch, selection: Selection, update: UpdateInput) -> StepFigures:
        """Everything after the selection."""
        sae, kernels, adam = self.sae, self.kernels, update.adam
        n_tokens = adam.n_tokens  # a tensor: a recorded graph must read the size of the batch from the device
        centred, variance, is_counted = prepared.centred, prepared.variance, prepared.is_counted
        coefficient = 2 / (n_tokens * variance)

        # 1. Decoding: errors, and the gradient of every activation.
        code = self.decoding.decode(prepared, selection, update, table=self.adam.tables[1], coefficient=coefficient)
        decoded = code.decoded

        # 2. Sums over the tokens of this process.
        with self.side.beside():
            tokens = self._token_sums(prepared, decoded)

        # 3. AuxK: its loss, and gradients in rows of their own for the dead latents.
        aux_loss, aux = torch.zeros_like(variance), None
        if update.n_dead_slots:
            self.side.join()
            tokens = self.exchange.sum_over_tokens(tokens)
            aux_loss, aux = aux_loss_and_gradients(
                sae,
                (self.adam.tables[0], self.adam.tables[1]),
                centred=centred,
                error=decoded.error[-1],
                is_counted=is_counted.float(),
                # ||e - mean e||^2 of the batch, from sums that exist already
                spread=(tokens.figures[0] - tokens.last_error.square().sum() / n_tokens).clamp_min(1e-30),
                n_slots=update.n_dead_slots,
                processes=self.exchange.latent_processes,
            )

        # 4. Gradients and Adam.
        pairs, since_fired, summed = code.pairs, sae.tokens_since_fired, code.summed or decoded
        firings = summed if code.fired is None else summed._replace(acts=code.fired)
        grad_b_enc, ends = kernels.bias_gradient_and_firings(pairs, firings, since_fired, adam, aux=aux)
        rows_in = centred if summed is decoded else centred.repeat(summed.error.shape[1] // len(centred), 1)
        row_sums = RowSums(pairs, summed, rows_in, coefficient, ends=ends)
        if sae.W_skip is not None:
            error = (decoded.error[-1] * is_counted[:, None]).to(centred.dtype)
            code.extra_gradients["W_skip"] = product(centred.T, error) * coefficient
        local_sums = BatchSums(tokens, self.parameters.latent_sums(grad_b_enc, aux_loss, code.extra_gradients))
        sums = self.parameters.apply(
            row_sums, adam, aux, local_sums=local_sums, coefficient=coefficient, has_token_sums=update.n_dead_slots > 0
        )

        # 5. Figures.
        self._observe(prepared, selection, code, update)
        square_error, prefix_error, n_active, target_square = sums.tokens.figures
        aux_loss = sums.latents.aux_loss
        # coefficient is 2 / (n variance), as gradients need it; the loss has 1 / (n variance).
        loss = prefix_error * (coefficient / 2) + sae.config.aux_coefficient * aux_loss + code.extra_loss
        figures = torch.stack([loss, aux_loss, n_active / n_tokens, square_error, target_square])
        return StepFigures(figures, sums.tokens.target)

    def _token_sums(self, prepared: PreparedBatch, decoded: Decoded) -> TokenSums:
        """error[0] is x_hat - y summed over all prefixes (for b_dec's gradient), error[-1] that of the whole dictionary (for
        AuxK); without prefixes they are one."""
        kernels, is_counted = self.kernels, prepared.is_counted
        last_error = kernels.row_times(is_counted, decoded.error[-1])
        first_error = last_error if len(decoded.error) == 1 else kernels.row_times(is_counted, decoded.error[0])
        figures = (torch.stack([*decoded.by_token, prepared.target_squares]) * is_counted).sum(1)
        return TokenSums(figures, first_error, last_error, is_counted.float() @ prepared.batch.y)

    def _observe(self, prepared: PreparedBatch, selection: Selection, code: DecodedCode, update: UpdateInput) -> None:
        """Shows the pass to an architecture that learns from it by other means than gradients."""
        if type(self.sae).observe is SparseAutoencoder.observe:
            return
        batch, decoded = prepared.batch, code.decoded
        self.sae.observe(
            TrainingPass(
                batch, selection.values, code.encoding, batch.y + decoded.error[-1], variance=prepared.variance,
                tokens_seen=update.tokens_seen, counts=code.counts,
            )
        )  # fmt: skip
        if self.exchange.token_processes.world_size > 1:
            average_buffers(
                self.sae, self.exchange.token_processes, update.adam.n_own_tokens / update.adam.n_tokens
            )  # fmt: skip

    def _static_batch(self, raw: Batch, size: int) -> Batch:
        """The rows copied into tensors that stay where they are (a CUDA graph reads those), made for `size` rows.

        Rows beyond those of `raw` still hold an earlier batch: `is_counted` and `n_own_tokens` leave them out.
        """
        if size not in self._static_batches:
            x = raw.x.new_zeros(size, raw.x.shape[1])
            y = x if raw.y is raw.x else raw.y.new_zeros(size, raw.y.shape[1])
            gradient = None if raw.gradient is None else raw.gradient.new_zeros(size, raw.gradient.shape[1])
            self._static_batches[size] = Batch(x, y, gradient)

        static = self._static_batches[size]
        for rows, place in {raw.x: static.x, raw.y: static.y, raw.gradient: static.gradient}.items():
            if rows is not None and place is not None:
                place[: len(rows)].copy_(rows)

        return static

    def _prepared(self, raw: Batch, update: UpdateInput) -> PreparedBatch:
        """The batch in the dictionary's units. Rows beyond this process's own are padding and count as 0."""
        sae, variance, scales = self.sae, update.variance, update.scales
        is_counted = self.kernels.numbers(len(raw.x), self.device) < update.adam.n_own_tokens
        x = None
        if not sae.centred:
            x, y = raw.x * scales.read, raw.y * scales.written
            centred, target_squares = x.to(self.kernels.DTYPE), y.square().sum(1)
        elif not sae.config.token_norm:
            y, centred, target_squares = self.kernels.prepare(raw.x, scales.read, sae.b_dec)
        else:
            y = sae.prepared(raw.x * scales.read).x
            centred, target_squares = sae.centre(y).to(self.kernels.DTYPE), y.square().sum(1)
            variance = torch.full_like(variance, sae.d_out)  # as in `SparseAutoencoder.losses`

        batch = Batch(y if x is None else x, y, raw.gradient)
        # The code need not reconstruct what the skip connection does.
        target = y if sae.W_skip is None else y - product(centred, sae.W_skip.data.to(centred.dtype))
        return PreparedBatch(
            batch, centred, target_squares, variance, is_counted=is_counted.to(self.kernels.DTYPE), target=target
        )

    def gather_weights(self) -> None:
        """Brings the weights that other processes have updated."""
        self.exchange.gather_weights(self.sae)
