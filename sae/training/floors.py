"""The floor of a training step on this machine: the time of work that no step can avoid."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError

Step = Callable[[], object]


class Shape(NamedTuple):
    """Width of the activations, number of latents, latents kept per token, tokens per step."""

    width: int
    latents: int
    k: int
    tokens: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """The shape in a text such as "768,24576,32,8192" (width, latents, k, tokens); raises `ConfigError`."""
        try:
            shape = cls(*map(int, text.split(",")))
        except (ValueError, TypeError):
            raise ConfigError(f"--shape: {text!r} is not width,latents,k,tokens, such as 768,24576,32,8192") from None
        if min(shape) < 1 or shape.k > shape.latents:
            raise ConfigError(f"--shape: {text!r}: all numbers must be at least 1, and k at most latents")
        return shape


def floors(shape: Shape, rows: Float[Tensor, "tokens width"], dtype: torch.dtype) -> dict[str, Step]:
    """The encoder's product, and Adam on gradients that exist already: what any step that writes gradients needs."""
    device = rows.device
    inputs, table = rows.to(dtype), torch.randn(shape.latents, shape.width, device=device).to(dtype)
    weights = [torch.randn(shape.latents, shape.width, device=device, requires_grad=True) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimiser = torch.optim.Adam(weights, lr=1e-3, fused=True)
    return {"encoder product": lambda: inputs @ table.T, "fused Adam": optimiser.step}
