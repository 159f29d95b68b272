"""The decoded code of an update: activations, errors, their gradients, and what a loss of the code itself adds."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures.base import SparseAutoencoder
from sae.architectures.flat_code import CodeLossByHand, ErrorTerm, FlatPass
from sae.architectures.settings import Batch, Encoding, TrainingPass
from sae.architectures.topk import MULTI_WEIGHT
from sae.kernels.step_types import AdamStep, Decoded, DecodeInput, StepKernels
from sae.training.cuda_graphs import SideStream
from sae.training.exchange import Exchange
from sae.training.latent_selection import Selection

SHARED_PARAMETERS = (
    "W_enc",
    "b_enc",
    "W_dec",
    "b_dec",
    "W_skip",
)  # whose gradients are those of the error; others belong to one


class Scales(NamedTuple):
    """Numbers per column that bring what a dictionary reads [d_in], and what it writes [d_out], into its units."""

    read: Float[Tensor, " d_in"]
    written: Float[Tensor, " d_out"]


class UpdateInput(NamedTuple):
    """What an update reads besides its rows: Adam's constants, room for dead latents, and how far training is.

    `variance` is that of the target in the dictionary's units. `tokens_seen` is a number; `tokens_seen_on_device` holds
    the same where a recorded update finds it. `n_tokens` are those of the batch in all processes.
    """

    scales: Scales
    variance: Float[Tensor, ""]
    adam: AdamStep
    n_dead_slots: int
    tokens_seen: int
    tokens_seen_on_device: Float[Tensor, ""]
    n_tokens: int


class PreparedBatch(NamedTuple):
    """A batch in the dictionary's units.

    `centred` [n, d] is the encoder's input as it is stored; `target_squares` [n] are squared norms of what is to be
    reconstructed; `is_counted` [n] is 0 for rows that only fill the batch up; `target` [n, d] is what the code is to
    reconstruct: all of it, or what a skip connection leaves.
    """

    batch: Batch
    centred: Float[Tensor, "n d"]
    target_squares: Float[Tensor, " n"]
    variance: Float[Tensor, ""]
    is_counted: Float[Tensor, " n"]
    target: Float[Tensor, "n d"]


class DecodedCode(NamedTuple):
    """The decoded code, and what a loss with a term of the code adds: that term and gradients by parameter name.

    `pairs` are those of the selection sorted by latent, as the kernels know them. `counts` [n], of a flat code, is the
    number of active latents of every token. Where one row of errors a token is not enough for the gradients of the
    weights, `summed` is what they are summed from, of several rows a token, and `fired` the activations that count as
    firings there.
    """

    encoding: Encoding
    decoded: Decoded
    pairs: Any
    extra_loss: Float[Tensor, ""] | float
    extra_gradients: dict[str, Float[Tensor, " ..."]]
    counts: Float[Tensor, " n"] | None = None
    summed: Decoded | None = None
    fired: Float[Tensor, "rows k"] | None = None


class CodeDecoding:
    """Decodes what was selected, as `SparseAutoencoder.losses` does."""

    def __init__(
        self,
        sae: SparseAutoencoder,
        kernels: StepKernels,
        exchange: Exchange,
        *,
        prefixes: Int[Tensor, " l"] | None,
        side: SideStream,
    ):
        self.sae, self.kernels, self.exchange, self.prefixes, self.side = sae, kernels, exchange, prefixes, side

    def decode(
        self,
        prepared: PreparedBatch,
        selection: Selection,
        update: UpdateInput,
        *,
        table: Float[Tensor, "m d"],
        coefficient: Float[Tensor, ""],
    ) -> DecodedCode:
        """By the decoder `table` [m, d]; `coefficient` is 2 / (n variance)."""
        decoding = DecodeInput(
            self._latents(selection),
            table=table,
            bias=self.sae.b_dec.data,
            target=prepared.target,
            coefficient=coefficient,
            n_counted=update.adam.n_own_tokens,
            prefixes=self.prefixes,
            starts=selection.flat.starts if selection.flat else None,
        )
        if self.sae.loss_terms == "wider":
            return self._with_wider_code(selection, decoding)
        if self.sae.loss_terms != "code":
            with self.side.beside():
                pairs = self._pairs(selection)
            decoded = self.exchange.decode(self.kernels, selection.values, decoding)
            self.side.join()
            return DecodedCode(Encoding(decoded.acts, decoding.latents), decoded, pairs, 0.0, extra_gradients={})

        # Not through `exchange`: LatentShards takes no loss of the code.
        if selection.flat is None:
            return self._with_code_loss_by_autograd(prepared, selection, update, decoding)
        return self._with_code_loss_by_hand(prepared, selection, update, decoding)

    def _has_padding(self, selection: Selection) -> bool:
        """Whether some places of the selection hold no latent (-1)."""
        return selection.flat is None and (self.sae.ragged or self.exchange.pads_selection)

    def _latents(self, selection: Selection) -> Tensor:
        """The selected latents as an index: padding is -1 or m, its value is such that the latent gets no activation."""
        if selection.flat is not None:
            return selection.latents.clamp_max(self.sae.d_sae - 1)
        return selection.latents.clamp_min(0) if self._has_padding(selection) else selection.latents

    def _pairs(self, selection: Selection) -> Any:
        """The (token, latent) pairs sorted by latent; padding is named m, one more than the last latent."""
        latents, m = selection.latents, self.sae.d_sae
        numbered = torch.where(latents < 0, m, latents) if self._has_padding(selection) else latents
        return self.kernels.sorted_pairs(numbered, m, selection.flat.tokens if selection.flat else None)

    def _with_wider_code(self, selection: Selection, decoding: DecodeInput) -> DecodedCode:
        """The error of the k largest latents, and w times that of all selected ones.

        With errors e of the first and f of all, the decoder's gradient is sum a (e + w f) over the first and sum a w f over
        the others: two rows a token, n rows of the first before n rows of the others.
        """
        sae, kernels, latents, values = self.sae, self.kernels, selection.latents, selection.values
        first = values.topk(sae.config.k, dim=1).indices  # pyright: ignore[reportAttributeAccessIssue]
        is_first = torch.zeros_like(values, dtype=torch.bool).scatter_(1, first, True)
        narrow = kernels.decode(values.gather(1, first), decoding._replace(latents=latents.gather(1, first)))
        wide = kernels.decode(values, decoding)

        weighted_error = wide.error[0] * MULTI_WEIGHT
        grad_acts = (wide.grad_acts * MULTI_WEIGHT).scatter_add(1, first, narrow.grad_acts)
        square, _, n_active = narrow.by_token
        by_token = torch.stack([square, square + MULTI_WEIGHT * wide.by_token[0], n_active])
        error = torch.stack([narrow.error[0] + weighted_error, narrow.error[0]])

        halves = torch.cat([is_first, ~is_first])
        summed = Decoded(
            wide.acts.repeat(2, 1) * halves,
            grad_acts.repeat(2, 1) * halves,
            torch.cat([error[0], weighted_error])[None],
            by_token,
        )
        numbered = torch.where(halves, latents.repeat(2, 1), sae.d_sae)
        fired = summed.acts.clone()
        fired[len(latents) :] = 0

        return DecodedCode(
            Encoding(narrow.acts, latents.gather(1, first)),
            Decoded(wide.acts * is_first, grad_acts, error, by_token),
            kernels.sorted_pairs(numbered, sae.d_sae),
            0.0,
            extra_gradients={},
            summed=summed,
            fired=fired,
        )

    def _with_code_loss_by_hand(
        self, prepared: PreparedBatch, selection: Selection, update: UpdateInput, decoding: DecodeInput
    ) -> DecodedCode:
        """As the architecture states it, so that nothing waits for the GPU."""
        from sae.kernels.cuda_ragged import ActivePairs, segment_sums

        sae, flat, values = self.sae, selection.flat, selection.values
        assert isinstance(sae, CodeLossByHand) and flat is not None
        acts = sae.activate(values[None], decoding.latents.long()[None])[0]
        with self.side.beside():
            has_gradient = (acts > 0) | sae.silent_pairs_have_gradients
            pairs = ActivePairs(selection.latents, has_gradient, tokens=flat.tokens, n_latents=sae.d_sae)
        decoded = self.kernels.decode(acts, decoding, rectify=False)
        self.side.join()
        n_active = decoded.by_token[2] * prepared.is_counted

        code_loss = sae.code_loss(
            FlatPass(
                prepared.batch,
                latents=decoding.latents,
                tokens=flat.tokens,
                values=values,
                acts=acts,
                grad_acts=decoded.grad_acts,
                n_active=n_active,
                is_counted=prepared.is_counted.float(),
                n_tokens=update.adam.n_tokens,
                tokens_seen=update.tokens_seen_on_device,
                sum_by_token=lambda numbers: segment_sums(numbers, flat.starts),
                sum_by_latent=pairs.sum_by_latent,
                sum_over_batch=self._sum_over_batch,
                decoded=lambda acts: self._error_term(acts, prepared, decoding),
            )
        )

        return DecodedCode(
            Encoding(acts, decoding.latents),
            decoded._replace(grad_acts=code_loss.grad_values),
            pairs,
            code_loss.loss,
            extra_gradients=code_loss.gradients,
            counts=n_active,
        )

    def _sum_over_batch(self, numbers: Tensor) -> Tensor:
        """The sum of a number for each token over the tokens of all processes."""
        return self.exchange.token_processes.all_reduce_sum(numbers.sum())

    def _error_term(self, acts: Tensor, prepared: PreparedBatch, decoding: DecodeInput) -> ErrorTerm:
        decoded = self.kernels.decode(acts, decoding, rectify=False)
        squares = self._sum_over_batch(decoded.by_token[0] * prepared.is_counted)
        return ErrorTerm(squares * (decoding.coefficient / 2), decoded.grad_acts)

    def _with_code_loss_by_autograd(
        self, prepared: PreparedBatch, selection: Selection, update: UpdateInput, decoding: DecodeInput
    ) -> DecodedCode:
        """By autograd, over the [n, k] selected values alone."""
        sae, latents, values = self.sae, decoding.latents.long(), selection.values
        own_parameters = {n: p for n, p in sae.named_parameters() if n == "b_enc" or n not in SHARED_PARAMETERS}

        with torch.enable_grad():
            values = values.requires_grad_()
            acts = sae.activate(values, latents)

        decoded = self.kernels.decode(acts.detach(), decoding, rectify=False)

        with torch.enable_grad():
            batch, code = prepared.batch, Encoding(acts, latents)
            extra = sae.extra_loss(
                TrainingPass(
                    batch, values, code, batch.y, variance=prepared.variance, tokens_seen=update.tokens_seen
                )
            )  # fmt: skip
            roots = (acts,) if extra is None else (acts, extra)
            share = (
                update.adam.n_own_tokens / update.adam.n_tokens
            )  # `extra` has the gradient of this process's own mean
            root_gradients = (decoded.grad_acts,) if extra is None else (decoded.grad_acts, share.to(extra))
            grad_values, *own_gradients = torch.autograd.grad(
                roots, (values, *own_parameters.values()), root_gradients, allow_unused=True
            )
        pairs_of_gradients = zip(own_parameters, own_gradients, strict=True)

        return DecodedCode(
            Encoding(acts.detach(), latents),
            decoded._replace(grad_acts=grad_values),
            self._pairs(selection),
            torch.zeros_like(prepared.variance) if extra is None else extra.detach(),
            extra_gradients={name: gradient for name, gradient in pairs_of_gradients if gradient is not None},
        )
