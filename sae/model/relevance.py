"""Relevance propagation: changes only the backward pass of a language model, so that a gradient attributes better."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sae.model.hookpoints import find_places
from sae.model.language_model import LanguageModel

STABILISER = 1e-6


def _frozen_ratio(x: Tensor, y: Tensor) -> Tensor:
    """The value y with the gradient of x times a constant, y / x: the identity rule."""
    ratio = y.detach() / torch.where(x.abs() < STABILISER, STABILISER, x.detach())
    return y.detach() + ratio * (x - x.detach())


def _norm_rule(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """The normalisation with its scale held constant."""
    x = args[0]
    if isinstance(module, nn.LayerNorm):
        centred = x - x.mean(-1, keepdim=True)
        scale = (x.var(-1, keepdim=True, unbiased=False) + module.eps).rsqrt().detach() * module.weight
        return output.detach() + scale * (centred - centred.detach())
    return _frozen_ratio(x, output)


def _activation_rule(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return _frozen_ratio(args[0], output)


def _half_rule(x: Tensor) -> Tensor:
    """A gated product, each factor bearing half: g / 2 + constant."""
    return x / 2 + (x / 2).detach()


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 1


def _is_activation(module: nn.Module) -> bool:
    home = type(module).__module__
    return home.startswith(("torch.nn.modules.activation", "transformers.activations"))


def _gated(lm: LanguageModel, layer: int) -> Callable[..., Any] | None:
    """Puts the half rule before the MLP's last linear map, if its input is a product and not an activation's own
    output.
    """
    places = find_places(lm, layer)
    if "mlp_hidden" not in places or "mlp_in" not in places:
        return None
    prefix = places["mlp_hidden"].name.rpartition(".")[0]
    siblings = [n for n, m in lm.body.named_modules() if n.startswith(prefix + ".") and _is_matrix(m)]
    return places["mlp_hidden"].watch if len(siblings) >= 3 else None


def _is_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2


@contextmanager
def frozen_scales(lm: LanguageModel) -> Iterator[None]:
    """Inside the block the backward pass takes the scales of normalisations for constants; values do not change."""
    with ExitStack() as stack:
        for module in lm.body.modules():
            if _is_norm(module):
                stack.callback(module.register_forward_hook(_norm_rule).remove)
        yield


class RelevanceRules:
    """The hooks of one language model; `active()` applies them inside a `with` block."""

    def __init__(self, lm: LanguageModel):
        modules = list(lm.body.modules())
        self.norms = [m for m in modules if _is_norm(m)]
        self.activations = [m for m in modules if _is_activation(m)]
        self.gates = [watch for layer in lm.blocks.running if (watch := _gated(lm, layer))]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Normalisation scales are constants, activation functions are products with a constant, gates bear half.

        Values do not change; gradients become the coefficients of RelP (Rezaei Jafari et al. 2025,
        arXiv 2508.21258) without its optional rule for attention patterns.
        """
        with ExitStack() as stack:
            for module in self.norms:
                stack.callback(module.register_forward_hook(_norm_rule).remove)
            for module in self.activations:
                stack.callback(module.register_forward_hook(_activation_rule).remove)
            for watch in self.gates:
                stack.callback(watch(_half_rule).remove)
            yield
