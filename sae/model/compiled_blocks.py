"""Compiles the language model's blocks for the duration of a pass, except blocks with a hook inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.model.hookpoints import Place
from sae.model.language_model import LanguageModel

IGNORED = -100  # a token that is no target of the loss


class CompiledBlocks:
    """One compilation, shared by all blocks of a model; blocks with a hooked module inside stay as they are.

    Differs from the plain pass by rounding alone: fused operations keep float32 where separate ones round to bfloat16.
    """

    def __init__(self, lm: LanguageModel, places: Iterable[Place]):
        watched = {place.module for place in places}
        self._forwards: list[tuple[nn.Module, Callable[..., Any]]] = [
            (block, torch.compile(block.forward, dynamic=False))
            for block in lm.blocks.modules
            if watched.isdisjoint(set(block.modules()) - {block})
        ]
        self.loss = torch.compile(next_token_loss, dynamic=False)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Runs the model's blocks compiled inside the `with`; afterwards they are as before."""
        for block, forward in self._forwards:
            block.forward = forward  # hides the class's method; calling the block still runs its hooks around it
        try:
            yield
        finally:
            for block, _ in self._forwards:
                del block.forward


def next_token_loss(
    logits: Float[Tensor, "contexts length vocabulary"], tokens: Int[Tensor, "contexts length"]
) -> Float[Tensor, ""]:
    """Cross-entropy of every next token, summed: logits [contexts, length, vocabulary], tokens [contexts, length].

    Tokens that are `IGNORED` are no targets.
    """
    targets = tokens[:, 1:].flatten()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets, reduction="sum", ignore_index=IGNORED)
