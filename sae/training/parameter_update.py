"""The last part of an update: Adam on every parameter, from sums over the whole batch or from gradients by autograd."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures.base import SparseAutoencoder
from sae.kernels.step_types import AdamStep, AuxGradients, ParameterState, RowSums, StepKernels
from sae.training.adam_state import AdamState
from sae.training.cuda_graphs import SideStream
from sae.training.exchange import Alone, BatchSums, Exchange, LatentSums, RowUpdate, TableCopies


class ParameterUpdate:
    """Updates the parameters of one dictionary; see `FusedStep`, which gives the sums."""

    def __init__(
        self,
        sae: SparseAutoencoder,
        kernels: StepKernels,
        exchange: Exchange,
        *,
        adam: AdamState,
        side: SideStream,
        prefixes: Int[Tensor, " l"] | None,
    ):
        self.sae, self.kernels, self.exchange = sae, kernels, exchange
        self.adam, self.side, self.prefixes = adam, side, prefixes

    def copies(self) -> TableCopies:
        """The weights as kernels read them."""
        rounded, tables = self.adam.rounded, self.adam.tables
        return TableCopies([rounded[0], tables[0]], [rounded[1], tables[1]])

    def latent_sums(
        self,
        grad_b_enc: Float[Tensor, " m"],
        aux_loss: Float[Tensor, ""],
        extra_gradients: dict[str, Float[Tensor, " ..."]],
    ) -> LatentSums:
        """This process's sums, with b_dec's gradient through the encoder, from whose input it is subtracted."""
        through_encoder = torch.zeros_like(self.sae.b_dec)
        if self.sae.centred:
            through_encoder = self.kernels.row_times(grad_b_enc, self.adam.tables[0])
        return LatentSums(grad_b_enc, through_encoder, aux_loss, extra_gradients)

    def apply(
        self,
        sums: RowSums,
        adam: AdamStep,
        aux: AuxGradients | None,
        *,
        local_sums: BatchSums,
        coefficient: Float[Tensor, ""],
        has_token_sums: bool,
    ) -> BatchSums:
        """Adam on both weight tables, b_enc, b_dec, and the parameters that only this architecture has.

        Returns the sums over the whole batch, which travel while the tables are updated.
        """
        sae, exchange, update_vector = self.sae, self.exchange, self.kernels.update_vector
        if not isinstance(exchange, Alone):
            self.side.join()
        end = exchange.start_sums(local_sums, sae.tokens_since_fired, has_token_sums=has_token_sums)
        update = RowUpdate(
            sums, encoder=self.adam.encoder(), decoder=self.adam.decoder(), adam=adam, aux=aux, prefixes=self.prefixes
        )  # fmt: skip
        exchange.update_rows(self.kernels, update, self.copies())
        self.side.join()
        batch = end()

        extra = dict(batch.latents.extra_gradients)
        grad_b_enc, beside_pre_acts = batch.latents.grad_b_enc, extra.pop("b_enc", None)
        update_vector(
            self.adam.of(sae.b_enc), grad_b_enc if beside_pre_acts is None else grad_b_enc + beside_pre_acts, adam
        )
        # b_dec is also subtracted from the input, so its gradient has a part through the encoder
        grad_b_dec = batch.tokens.first_error * coefficient - batch.latents.through_encoder
        update_vector(self.adam.of(sae.b_dec), grad_b_dec, adam)
        for name, gradient in extra.items():
            self._update_parameter(name, gradient, adam)
        return batch

    def _update_parameter(self, name: str, gradient: Tensor, adam: AdamStep) -> None:
        faster = adam.with_lr_multiple(self.sae.lr_multiples.get(name, 1.0))
        state = ParameterState(*(tensor.view(-1) for tensor in self.adam.of(self.sae.get_parameter(name))))
        self.kernels.update_vector(state, gradient.reshape(-1), faster)

    @torch.no_grad()
    def apply_gradients(self, *, lr: float, n_tokens: int, n_own_tokens: int) -> None:
        """Adam and the unit norm with the gradients in `.grad`, for an update by autograd in place of this step's."""
        sae, adam = self.sae, self.adam.step(lr, n_tokens, n_own_tokens)
        part = self.exchange.own_latents(sae.d_sae)
        tables = (sae.W_enc, self.adam.encoder(), False), (sae.W_dec, self.adam.decoder(), True)
        for parameter, table, has_unit_norm in tables:
            assert parameter.grad is not None
            by_latent = parameter.grad.T if parameter is sae.W_enc else parameter.grad
            self.kernels.apply_rows(by_latent[None, part].contiguous(), table, adam=adam, has_unit_norm=has_unit_norm)
        for name, parameter in sae.named_parameters():
            if name not in ("W_enc", "W_dec") and parameter.grad is not None:
                self._update_parameter(name, parameter.grad, adam)

        self.adam.count_update()
        self.exchange.gather_rows(self.copies())
