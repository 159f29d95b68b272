"""Matching pursuit: latents are taken one after another, each for what the former ones have left of the token."""

from __future__ import annotations

from typing import Literal, NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from sae.architectures.base import SparseAutoencoder
from sae.architectures.settings import Encoding, KeepsK, SelectionInput
from sae.kernels.sparse import gather_dot, pick


@final
class MatchingPursuitConfig(KeepsK):
    """Settings of a matching pursuit dictionary."""

    architecture: Literal["matching_pursuit"] = Field(
        default="matching_pursuit", description="k latents one after another, each read from what is left of the token."
    )
    least_residual: float = Field(
        default=0.0, ge=0, description="A token's pursuit ends when the norm of what is left is below this; 0: never."
    )
    stops_on_repeat: bool = Field(
        default=True, description="A token's pursuit ends at the first step that takes no new latent."
    )


class Pursuit(NamedTuple):
    """The steps of every token: latents and activations [tokens, steps] (0 where a token had ended).

    slots [tokens, steps] is the column in which a step's activation is summed: the first step that took the same latent.
    """

    latents: Int[Tensor, "tokens steps"]
    values: Float[Tensor, "tokens steps"]
    slots: Int[Tensor, "tokens steps"]


@final
class MatchingPursuit(SparseAutoencoder[MatchingPursuitConfig]):
    """r_0 = x - b_dec; step j: i = argmax(r_j W_enc + b_enc), v = ReLU(<r_j, w_i> + b_i), a_i += v, r_{j+1} = r_j - v d_i.

    Coding takes k products with the encoder, one after another. Each latent is read from what is left, so that latents
    of similar directions (parts of a hierarchy) do not explain the same twice.

    Paper: From flat to hierarchical: extracting sparse representations with matching pursuit, Costa et al. 2025,
    arXiv 2506.03093.
    Differs from the paper: the encoder begins as the transposed decoder, with b_enc 0, and learns for itself; published
    dictionaries whose encoder is the decoder are read as they are.
    """

    config_class = MatchingPursuitConfig
    ragged = True
    computes_as = "matching_pursuit"
    foreign_tensors = ("residual_threshold",)
    in_units_of_activation = ("residual_threshold",)
    residual_threshold: Float[Tensor, ""]

    def __init__(
        self, config: MatchingPursuitConfig, d_in: int, d_out: int, selection_dtype: torch.dtype = torch.float32
    ):
        super().__init__(config, d_in, d_out, selection_dtype)
        self.register_buffer("residual_threshold", torch.tensor(config.least_residual))

    @property
    def loss_terms(self) -> None:
        """The gradient passes through the steps, so training goes by autograd."""
        return None

    def select(self, pre_acts: Float[Tensor, "tokens d_sae"], selection: SelectionInput) -> Int[Tensor, "tokens width"]:
        """The latents of the pursuit; -1 where a step added none."""
        pursuit = self._pursuit(selection.centred)
        return torch.where(pursuit.values > 0, pursuit.latents, -1)

    @torch.no_grad()
    def _pursuit(self, centred: Tensor) -> Pursuit:
        """The steps of all tokens, until all have ended or k is reached."""
        rest, is_going = centred.clone(), torch.ones(len(centred), dtype=torch.bool, device=centred.device)
        latents = torch.full((len(centred), self.config.k), -1, device=centred.device)
        values, slots = torch.zeros_like(latents, dtype=centred.dtype), latents.clone()

        for step in range(self.config.k):
            # In float32: a latent that only rounding prefers would change all that is left for the later steps.
            best = torch.addmm(self.b_enc, rest, self.W_enc).argmax(1)[:, None]
            value = F.relu(gather_dot(rest, self.W_enc.T, best) + pick(self.b_enc, best)) * is_going[:, None]
            rest = rest - value * self.W_dec[best[:, 0]]

            is_same = latents[:, :step] == best
            is_repeat = is_same.any(1, keepdim=True)
            latents[:, step], values[:, step] = best[:, 0], value[:, 0]
            slots[:, step] = step
            if step:
                slots[:, step : step + 1] = torch.where(is_repeat, is_same.int().argmax(1, keepdim=True), step)

            if self.config.stops_on_repeat:
                is_going = is_going & (value > 0)[:, 0] & ~is_repeat[:, 0]
            is_going = is_going & (rest.norm(dim=1) >= self.residual_threshold)
            if not is_going.any():
                return Pursuit(latents[:, : step + 1], values[:, : step + 1], slots[:, : step + 1])

        return Pursuit(latents, values, slots)

    def _code(self, x: Tensor, gradient: Tensor | None) -> tuple[Encoding, Tensor]:
        centred = self.centre(x)
        pursuit = self._pursuit(centred)
        values = self._differentiable(centred, pursuit) if torch.is_grad_enabled() else pursuit.values
        acts = torch.zeros_like(values).scatter_add(1, pursuit.slots, values)
        return Encoding(acts, pursuit.latents), acts

    def _differentiable(self, centred: Tensor, pursuit: Pursuit) -> Tensor:
        """The pursuit's activations once more, as a function of the weights while the latents are constants.

        v_j = ReLU(<c, w_j> + b_j - sum_{i < j} v_i <d_i, w_j>), with c the centred token: every row is read once, and not
        the whole residual kept for each step.
        """
        w, d = (F.embedding(pursuit.latents, table) for table in (self.W_enc.T, self.W_dec))
        first = (w @ centred[:, :, None])[:, :, 0] + pick(self.b_enc, pursuit.latents)
        products = w @ d.transpose(1, 2)
        is_taken = pursuit.values > 0

        values: list[Tensor] = []
        for step in range(first.shape[1]):
            value = first[:, step]
            if values:
                value = value - (products[:, step, :step] * torch.stack(values, 1)).sum(1)
            values.append(F.relu(value) * is_taken[:, step])
        return torch.stack(values, 1)
