"""The sparse autoencoder that every architecture shares: weights, centring, decoding, losses, dead latents."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Literal, TypeVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae.architectures.settings import (
    ArchitectureConfig,
    Batch,
    BatchMean,
    Encoding,
    Losses,
    PreparedTokens,
    SelectionInput,
    TrainingPass,
)
from sae.foundation.device import gains_by_bfloat16
from sae.kernels import cpu_proposals, reference
from sae.kernels.sparse import gather_dot, gather_sum, is_elsewhere, pick, ragged_dot

PADDED = -1e30  # the pre-activation of padding in a code: so low that it is never active
TINY = 1e-30  # a token of zeros stays one
TOKEN_NORM_EPS = 1e-5
INITIAL_ROWS = 1 << 16  # drawn at a time; torch draws 16 numbers at once, so blocks are the same as one draw
PIECE_NUMBERS, ROWS_ELSEWHERE = 1 << 26, 1 << 14  # pre-activations held outside of training; rows, if W_enc is brought

C = TypeVar("C", bound=ArchitectureConfig)


def _random_rows(rows: Tensor, first: int, total: int, generator: torch.Generator) -> None:
    """Fills `rows` with the rows from `first` on of a table of `total` random unit rows, drawn block by block."""
    for start in range(0, total, INITIAL_ROWS):
        block = torch.randn(min(INITIAL_ROWS, total - start), rows.shape[1], generator=generator)
        begin, end = max(start, first), min(start + len(block), first + len(rows))
        if begin < end:
            rows[begin - first : end - first].copy_(F.normalize(block[begin - start : end - start], dim=1))


class SparseAutoencoder(nn.Module, ABC, Generic[C]):
    """x_hat = sum_i a_i d_i + b_dec with few a_i > 0; a = activate((x - b_dec) W_enc + b_enc) on the selected latents.

    Shapes: W_enc [d_in, d_sae] (stored latent by latent), W_dec [d_sae, d_out] with unit rows, b_enc [d_sae],
    b_dec [d_out]. An input that is not also the target (a transcoder's) is not centred. Selection runs in
    `selection_dtype`; the selected activations are computed in float32. In training mode (`train()`) an
    architecture may select over the whole batch; in evaluation mode a token's code depends on that token alone.
    """

    # An architecture states its abilities here, on its class; no other file names architectures.
    config_class: ClassVar[type[ArchitectureConfig]]
    ragged: ClassVar[bool] = False  # whether `select` keeps a different number of latents per token
    # lets fast kernels take the place of `select`; the last two are for architectures that are `CodeLossByHand`
    selects: ClassVar[Literal["k_per_token", "k_per_batch", "above_bounds", "to_norm"] | None] = None
    extra_loss_terms: ClassVar[Literal["prefixes", "code"] | None] = None  # see `loss_terms`
    in_units_of_activation: ClassVar[tuple[str, ...]] = ()  # further tensors that `fold_scale` divides
    lr_multiples: ClassVar[dict[str, float]] = {}  # parameters that learn faster than the rest
    computes_as: ClassVar[str | None] = None  # its form in foreign files
    foreign_tensors: ClassVar[tuple[str, ...]] = ()  # tensors of that form beside the four that all have
    lost_in_foreign_form: ClassVar[str | None] = None  # what that form does not keep, in words

    def __init__(self, config: C, d_in: int, d_out: int, selection_dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config: C = config
        self.selection_dtype, self.mean_over_batch = selection_dtype, BatchMean()
        self.W_enc = nn.Parameter(torch.zeros(config.d_sae, d_in).T)
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(torch.zeros(config.d_sae, d_out))
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        self.W_skip: nn.Parameter | None = None
        self.tokens_since_fired: Tensor
        self.register_buffer("tokens_since_fired", torch.zeros(config.d_sae, dtype=torch.int64), persistent=False)

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        return len(self.b_dec)

    @property
    def d_sae(self) -> int:
        return len(self.b_enc)

    @final
    @torch.no_grad()
    def initialise(
        self, generator: torch.Generator, centre: Float[Tensor, " d_out"], first: int = 0, total: int | None = None
    ) -> None:
        """Random unit decoder rows, encoder tied to them, zero b_enc, b_dec at `centre`; latents from `first` of `total`."""
        total = self.d_sae if total is None else total
        _random_rows(self.W_dec.data, first, total, generator)
        if self.centred:
            self.W_enc.copy_(self.W_dec.T)
        else:
            _random_rows(self.W_enc.data.T, first, total, generator)

        self.b_dec.copy_(torch.zeros_like(centre) if self.config.token_norm else centre)

    @property
    def loss_terms(self) -> Literal["error", "prefixes", "code", "wider"] | None:
        """What the loss depends on besides AuxK; the hand-written step must know.

        "error": the squared error of a ReLU code; "prefixes": the sum of squared errors over all `config.prefixes`;
        "code": the squared error and a term of the selected activations, with one number per latent as parameters;
        "wider": also the squared error of a code of more latents, as in TopK; None: anything else.
        """
        kind, base = type(self), SparseAutoencoder
        is_plain = kind.activate is base.activate and kind.extra_loss is base.extra_loss
        return "error" if is_plain else kind.extra_loss_terms

    @property
    def k_in_loss(self) -> int:
        """The most latents of a token that the loss reads, if that is one number for all tokens, else 1."""
        return getattr(self.config, "k", 1)

    @property
    def k_of_token(self) -> int:
        """The latents that every token keeps, where that is one number."""
        return getattr(self.config, "k", 0)

    @property
    def centred(self) -> bool:
        """Whether b_dec is subtracted from the input: if input and target are the same."""
        return self.config.reads == self.config.writes

    @final
    def prepared(self, x: Float[Tensor, "tokens d_in"]) -> PreparedTokens:
        """The rows that the encoder reads: each token normalised if `token_norm`, else x itself."""
        if not self.config.token_norm:
            return PreparedTokens(x, None, None)
        if self.config.token_norm is not True:  # its length alone
            multiple = x.norm(dim=1, keepdim=True).clamp_min(TINY) / self.d_in**0.5
            return PreparedTokens(x / multiple, torch.zeros_like(multiple), multiple)
        mean = x.mean(1, keepdim=True)
        deviation = (x - mean).std(1, keepdim=True)
        return PreparedTokens((x - mean) / (deviation + TOKEN_NORM_EPS), mean, deviation)

    @final
    def centre(self, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_in"]:
        """x - b_dec if the dictionary is `centred`, else x."""
        return x - self.b_dec if self.centred else x

    @final
    @torch.no_grad()
    def pre_acts(self, centred: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_sae"]:
        """centred W_enc + b_enc [tokens, d_sae] in `selection_dtype`; not differentiated."""
        dtype = self.selection_dtype
        return torch.addmm(self.b_enc.to(dtype), centred.to(dtype), self.W_enc.to(dtype))

    @abstractmethod
    def select(self, pre_acts: Float[Tensor, "tokens d_sae"], selection: SelectionInput) -> Int[Tensor, "tokens width"]:
        """Latents [tokens, width] to keep, of all pre-activations [tokens, d_sae].

        A `ragged` architecture pads the rows of tokens that keep fewer latents with -1.
        """

    def activate(
        self, values: Float[Tensor, "tokens width"], indices: Int[Tensor, "tokens width"]
    ) -> Float[Tensor, "tokens width"]:
        """Activations [tokens, width] of the selected latents from their pre-activations; ReLU by default."""
        return F.relu(values)

    def selection_bounds(self) -> Float[Tensor, " d_sae"] | None:
        """What a pre-activation must be above for its latent to be kept; None if another rule decides."""
        return None

    def proposed(self, centred: Float[Tensor, "tokens d_in"], k: int) -> Int[Tensor, "tokens width"] | None:
        """`select` in float32 without most of the product, or the encoder, on this device; None if that cannot be done."""
        table, bounds = self.W_enc.detach().T, self.selection_bounds()
        if is_elsewhere(table, centred):
            return reference.in_pieces(centred, table, self.b_enc, bounds=bounds, k=k)
        if not gains_by_bfloat16(table):
            return None
        if bounds is not None and self.selection_dtype == torch.float32:
            return cpu_proposals.above(centred, table, self.b_enc, bounds)
        is_top_k = self.selects == "k_per_token" and cpu_proposals.fits(self.d_sae, k)
        return cpu_proposals.largest(centred, table, self.b_enc, k) if is_top_k else None

    def _code(self, x: Tensor, gradient: Tensor | None) -> tuple[Encoding, Tensor]:
        """(code, pre-activations [tokens, width] of the selected latents, always in float32) of prepared rows."""
        centred = self.centre(x)
        with torch.no_grad():
            indices = self.proposed(centred, self.k_of_token)
            if indices is None:
                indices = self.select(self.pre_acts(centred), SelectionInput(centred, gradient))

        latents = indices.clamp_min(0) if self.ragged else indices
        if self.ragged and not self.training:
            values = ragged_dot(centred, self.W_enc.T, self.b_enc, indices)
        else:
            values = gather_dot(centred, self.W_enc.T, latents) + pick(self.b_enc, latents)
        if self.ragged:
            values = values.masked_fill(indices < 0, PADDED)

        return Encoding(self.activate(values, latents), latents), values

    @final
    def encode(self, x: Float[Tensor, "tokens d_in"], gradient: Float[Tensor, "tokens d_in"] | None = None) -> Encoding:
        """Sparse code of activations x [tokens, d_in]; `gradient` is for architectures that select by it.

        Outside of training, rows are taken in pieces, so that no table of all tokens and latents lies in memory.
        """
        x, mean, deviation = self.prepared(x)
        most = ROWS_ELSEWHERE if is_elsewhere(self.W_enc.T, x) else max(1, PIECE_NUMBERS // self.d_sae)
        if self.training or len(x) <= most:
            return self._code(x, gradient)[0]._replace(mean=mean, deviation=deviation)

        gradients = itertools.repeat(None) if gradient is None else gradient.split(most)
        pieces = [self._code(rows, part)[0] for rows, part in zip(x.split(most), gradients, strict=False)]
        width = max(piece.top_acts.shape[1] for piece in pieces)
        acts, indices = (
            torch.cat([F.pad(table, (0, width - table.shape[1])) for table in tables])
            for tables in zip(*((piece.top_acts, piece.top_indices) for piece in pieces), strict=True)
        )
        return Encoding(acts, indices, mean, deviation)

    @final
    def decode(
        self, encoding: Encoding, x: Float[Tensor, "tokens d_in"] | None = None
    ) -> Float[Tensor, "tokens d_out"]:
        """Reconstruction x_hat [tokens, d_out]; a dictionary with a skip connection needs its input x too."""
        x_hat = gather_sum(encoding.top_acts, self.W_dec, encoding.top_indices) + self.b_dec
        if self.W_skip is not None:
            if x is None:
                raise ValueError("this dictionary has a skip connection: give decode(encoding, x) its input")
            x_hat = x_hat + x @ self.W_skip
        if encoding.mean is not None and encoding.deviation is not None:
            x_hat = x_hat * encoding.deviation + encoding.mean
        return x_hat

    @final
    def forward(
        self, x: Float[Tensor, "tokens d_in"], gradient: Float[Tensor, "tokens d_in"] | None = None
    ) -> Float[Tensor, "tokens d_out"]:
        """decode(encode(x))."""
        return self.decode(self.encode(x, gradient), x)

    @final
    def losses(self, batch: Batch, variance: Float[Tensor, ""], tokens_seen: int = 0) -> Losses:
        """mean ||y - y_hat||^2 / variance + aux_coefficient * AuxK + extra_loss, on a training batch.

        `variance` is mean ||y - mean y||^2 of a sample, so that the first term is an estimate of fvu. With
        `token_norm` everything is in the normalised space, whose variance is d_out.
        """
        if self.config.token_norm:
            x = self.prepared(batch.x).x
            batch, variance = Batch(x, x, batch.gradient), torch.full_like(variance, self.d_out)

        encoding, values = self._code(batch.x, batch.gradient)
        x_hat = self.decode(encoding, batch.x)
        training_pass = TrainingPass(batch, values, encoding, x_hat, variance=variance, tokens_seen=tokens_seen)

        error = batch.y - x_hat
        aux = self.aux_loss(batch.x, error.detach())
        total = error.square().sum(1).mean() / variance + self.config.aux_coefficient * aux
        extra = self.extra_loss(training_pass)

        return Losses(total if extra is None else total + extra, aux, training_pass)

    def extra_loss(self, training_pass: TrainingPass) -> Float[Tensor, ""] | None:
        """A further term of the loss; none by default."""
        return None

    def calibrate(self, x: Float[Tensor, "rows d_in"]) -> None:
        """Sets what begins at a value of the data; `x` are rows of the training stream, scaled as training reads them."""

    def observe(self, training_pass: TrainingPass) -> None:
        """Lets an architecture keep a running figure over training passes; nothing by default."""

    @final
    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Which latents [d_sae] have been silent for `dead_after_tokens`."""
        return self.tokens_since_fired >= self.config.dead_after_tokens

    @final
    def aux_loss(self, x: Float[Tensor, "tokens d_in"], error: Float[Tensor, "tokens d_out"]) -> Float[Tensor, ""]:
        """AuxK: the share of the detached error that the `k_aux` strongest dead latents of a token leave; 0 if none is dead.

        ||e - e_hat||^2 / ||e - mean e||^2 with e_hat decoded without b_dec (Gao et al. 2024, arXiv 2406.04093,
        section A.2; the released code adds b_dec to both sides, which is the same).
        """
        dead = self.dead().nonzero()[:, 0]
        count = min(self.config.k_aux, len(dead))
        if count == 0 or self.config.aux_coefficient == 0:
            return x.new_zeros(())

        pre_acts = self.centre(x) @ self.W_enc[:, dead] + self.b_enc[dead]
        top = pre_acts.topk(count, dim=1, sorted=False)
        acts = torch.zeros_like(pre_acts).scatter(1, top.indices, F.relu(top.values))
        e_hat = acts @ self.W_dec[dead]
        return (error - e_hat).square().sum() / (error - error.mean(0)).square().sum().clamp_min(TINY)

    @final
    @torch.no_grad()
    def count_firings(self, encoding: Encoding, n_tokens: int | None = None) -> None:
        """Advances `tokens_since_fired` by the code's tokens, or by `n_tokens`; a latent selected with 0 has not fired."""
        acts, latents = encoding.top_acts.flatten(), encoding.top_indices.flatten().long()
        most = torch.zeros_like(self.tokens_since_fired, dtype=acts.dtype).scatter_reduce_(
            0, latents, acts.detach(), "amax"
        )
        self.tokens_since_fired += len(encoding.top_acts) if n_tokens is None else n_tokens
        self.tokens_since_fired.masked_fill_(most > 0, 0)

    @final
    @torch.no_grad()
    def project_decoder_gradient(self) -> None:
        """Removes from the gradient of every decoder row its part along the row."""
        grad = self.W_dec.grad
        if grad is not None:
            grad -= (grad * self.W_dec).sum(1, keepdim=True) * self.W_dec

    @final
    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Gives every decoder row unit norm again after an update by autograd; by hand, kernels do so."""
        self.W_dec.copy_(F.normalize(self.W_dec, dim=1))

    @final
    @torch.no_grad()
    def fold_scale(
        self, scale_in: Float[Tensor, " d_in"] | float, scale_out: Float[Tensor, " d_out"] | float | None = None
    ) -> None:
        """Turns a dictionary of scale_in * x -> scale_out * y into the same dictionary of x -> y.

        Scales are numbers, or one number per column. Activations are divided by c, the mean of scale_out: W_enc' =
        scale_in W_enc / c, W_dec' = c W_dec / scale_out, b_enc' = b_enc / c, b_dec' = b_dec / scale_out (equal scales leave
        tables as they are). Exact, because every selection commutes with a positive factor of all activations.
        """
        if self.config.token_norm:
            return  # each token was divided by its own norm, so no scale is left

        scale_out = scale_in if scale_out is None else scale_out
        like = {"dtype": torch.float32, "device": self.b_dec.device}
        scale_in, scale_out = (torch.as_tensor(s, **like) for s in (scale_in, scale_out))
        c = float(scale_out.mean())
        self.W_enc.copy_((self.W_enc.T * (scale_in / c)).T)
        self.W_dec *= c / scale_out
        self.b_dec /= scale_out
        if self.W_skip is not None:
            self.W_skip.copy_((self.W_skip.T * scale_in).T / scale_out)

        for name in ("b_enc", *self.in_units_of_activation):
            getattr(self, name).data.div_(c)
