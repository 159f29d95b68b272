"""Losses of the code by hand: what an architecture whose tokens keep different numbers of latents adds for a fast step on a GPU.

Without it the architecture trains by autograd there. The recorded update reads a code as one list of pairs, and takes the
gradients of the code's own loss from `CodeLossByHand.code_loss`, held to `activate` and `extra_loss` by a test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures.settings import Batch


class ErrorTerm(NamedTuple):
    """sum ||y_hat - y||^2 / (n_tokens variance) of a code, and its gradients [p] in the activations."""

    loss: Float[Tensor, ""]
    grad_acts: Float[Tensor, " p"]


class FlatPass(NamedTuple):
    """A forward pass of training whose code is a list of p pairs of a token and a latent, as `code_loss` reads it.

    The pairs have latents and tokens, pre-activations `values`, activations, and the gradients of these by the squared
    error, all [p]; pairs that are only there to fill the list belong to no sum. is_counted [tokens] is 0 for rows that
    fill the batch, n_tokens the number of the others in all processes. n_active [tokens]: how many latents of a token are
    active. `sum_over_batch` adds up what all processes have for their tokens.
    `decoded` gives for other activations of the same pairs their term of the loss, as the squared error is one, and its
    gradients, with the decoder left out.
    """

    batch: Batch
    latents: Int[Tensor, " p"]
    tokens: Int[Tensor, " p"]
    values: Float[Tensor, " p"]
    acts: Float[Tensor, " p"]
    grad_acts: Float[Tensor, " p"]
    n_active: Float[Tensor, " tokens"]
    is_counted: Float[Tensor, " tokens"]
    n_tokens: Float[Tensor, ""]
    tokens_seen: Float[Tensor, ""]
    sum_by_token: Callable[[Float[Tensor, " p"]], Float[Tensor, " tokens"]]
    sum_by_latent: Callable[[Float[Tensor, " p"]], Float[Tensor, " latents"]]
    sum_over_batch: Callable[[Float[Tensor, " tokens"]], Float[Tensor, ""]]
    decoded: Callable[[Float[Tensor, " p"]], ErrorTerm]


class CodeLoss(NamedTuple):
    """A term of the whole batch's loss that depends on the code, and what it and `activate` make of the gradients of the
    activations.

    grad_values [p] are gradients of the pre-activations; `gradients` those of parameters that only this architecture
    has, by name, and of `b_enc` where `activate` reads it beside the pre-activations.
    """

    loss: Float[Tensor, ""]
    grad_values: Float[Tensor, " p"]
    gradients: dict[str, Float[Tensor, " latents"]]


class CodeLossByHand(ABC):
    """An architecture that states the gradients of its own loss; `selects` says how the GPU may select for it."""

    # whether pre-activations whose activation is 0 have gradients
    silent_pairs_have_gradients: ClassVar[bool] = False

    @abstractmethod
    def code_loss(self, flat_pass: FlatPass) -> CodeLoss:
        """What `extra_loss` is on this pass, and the gradients through it and `activate`; nothing may wait for the GPU."""
