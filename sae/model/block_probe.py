"""Runs one block alone, and tells its modules apart by what they read and wrote: attention, MLP, and what feeds them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.model.blocks import PROBE_SHAPE, first_tensor
from sae.model.language_model import LanguageModel

TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Seen:
    """One module's tensors in the probing run, in order of completion."""

    name: str
    module: nn.Module
    input: Tensor | None
    output: Tensor


class _Captured(Exception):
    """Stops the forward pass where the probed block begins."""


def _as_float(value: Any, device: torch.device) -> Any:
    """`value` with every tensor inside it on `device`, and in float32 if it is floating."""
    if isinstance(value, Tensor):
        return value.to(device).float() if value.is_floating_point() else value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_as_float(v, device) for v in value)
    if isinstance(value, dict):
        return {key: _as_float(v, device) for key, v in value.items()}
    return value


class BlockProbe:
    """One block, run alone and in float32 on the input that a short forward pass brings it."""

    def __init__(self, lm: LanguageModel, name: str, block: nn.Module):
        self.name, self.block = name, block
        captured: list[Any] = []

        def capture(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured.extend((args, kwargs))
            raise _Captured

        handle = block.register_forward_pre_hook(capture, with_kwargs=True)

        try:
            with torch.no_grad():
                lm.body(input_ids=lm.probe_ids, use_cache=False)
        except _Captured:
            pass
        finally:
            handle.remove()

        device = next(block.parameters()).device  # of a spread model not that of the block before
        args, kwargs = _as_float(captured[0], device), _as_float(captured[1], device)
        if args:
            self.before, self.args, self.kwargs = args[0], args[1:], kwargs
        else:
            self.before, self.args = kwargs.pop("hidden_states"), ()
            self.kwargs = kwargs

    def run(self, hidden: Float[Tensor, " ..."]) -> tuple[Float[Tensor, " ..."], list[Seen]]:
        """(block output, what every module inside saw) for the block input `hidden`."""
        seen: list[Seen] = []

        def record(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                module_input = first_tensor(args[0] if args else kwargs.get("hidden_states"))
                if isinstance(first_tensor(output), Tensor):
                    module_input = module_input.clone() if isinstance(module_input, Tensor) else None
                    seen.append(Seen(name, module, module_input, first_tensor(output).clone()))

            return hook

        handles = [
            module.register_forward_hook(record(f"{self.name}.{inner}"), with_kwargs=True)
            for inner, module in self.block.named_modules()
            if inner
        ]
        exact = [parameter.data for parameter in self.block.parameters()]

        try:
            with torch.no_grad():
                for parameter in self.block.parameters():
                    parameter.data = parameter.data.float()
                return first_tensor(self.block(hidden, *self.args, **self.kwargs)), seen
        finally:
            for parameter, data in zip(self.block.parameters(), exact, strict=True):
                parameter.data = data
            for handle in handles:
                handle.remove()


def same(a: Float[Tensor, " *shape"], b: Float[Tensor, " *other"]) -> bool:
    if a.numel() != b.numel():
        return False
    a, b = a.reshape(-1).float(), b.reshape(-1).float()
    return bool((a - b).norm() <= TOLERANCE * (b.norm() + 1e-30))


def _is_laid_out(x: Tensor | None) -> bool:
    """Whether the first axes of `x` are contexts and tokens, or both as one, so that a harvest can read it by token."""
    return x is not None and (x.shape[:2] == PROBE_SHAPE or x.shape[0] == math.prod(PROBE_SHAPE))


def additive_pair(delta: Float[Tensor, " *shape"], seen: list[Seen]) -> tuple[Seen, Seen] | None:
    """The two modules whose outputs sum to `delta`: the innermost ones that do, in order of run."""
    fitting = [s for s in seen if s.output.numel() == delta.numel() and _is_laid_out(s.output)]
    for first, second in combinations(fitting, 2):
        rest = delta.reshape(-1) - first.output.reshape(-1)
        if first.output.norm() > 0 and same(second.output, rest):
            return first, second
    return None


def _is_linear(s: Seen) -> bool:
    """Whether a module multiplies one row per token by a weight matrix."""
    weight = getattr(s.module, "weight", None)
    is_matrix = isinstance(weight, Tensor) and weight.dim() == 2
    return is_matrix and _is_laid_out(s.input) and s.input.numel() == math.prod(PROBE_SHAPE) * s.input.shape[-1]  # pyright: ignore[reportOptionalMemberAccess]


def last_linear(sub_layer: list[Seen]) -> Seen | None:
    """The linear module whose output becomes that of the sub-layer, as it is or through modules that read it alone.

    A mixture of experts has none: its output is a sum over experts, and its last linear module may be the router.
    """
    for position in reversed(range(len(sub_layer))):
        if not _is_linear(sub_layer[position]):
            continue
        value = sub_layer[position].output
        for s in sub_layer[position + 1 :]:
            if s.input is not None and same(s.input, value):
                value = s.output
        if same(value, sub_layer[-1].output):
            return sub_layer[position]
    return None


def reader(sub_layer: list[Seen]) -> Seen | None:
    """The outermost module that is given what the sub-layer's first linear module reads, if all that read it lie inside.

    To replace the input of one of several readers (gate and up projection, router and experts) would be half an edit.
    """
    first = next((s for s in sub_layer if _is_linear(s)), None)
    if first is None:
        return None
    readers = [s for s in sub_layer if s.input is not None and same(s.input, first.input)]  # pyright: ignore[reportArgumentType]
    outermost = min(readers, key=lambda s: len(s.name))
    return outermost if all(s is outermost or encloses(outermost, s) for s in readers) else None


def encloses(outer: Seen, inner: Seen) -> bool:
    return inner.name.startswith(outer.name + ".")


def attention_and_mlp(probe: BlockProbe, seen: list[Seen], pair: tuple[Seen, Seen]) -> tuple[Seen, Seen] | None:
    """`pair` as (attention, MLP), or None: the attention is the one that depends on other positions, or that runs first.

    The block is run again on an input with another first position. An MLP that reads the block's own input keeps its
    other outputs. An MLP that reads the attention's output changes them, but such an MLP runs second. If neither changes
    (experts and a shared expert, say), there is no attention.
    """
    nudged = probe.before.reshape(*PROBE_SHAPE, -1).clone()
    nudged[:, 0] += nudged[:, 1]
    changed = {s.name: s for s in probe.run(nudged.reshape(probe.before.shape))[1]}

    def later(s: Seen) -> Tensor:
        return s.output.reshape(*PROBE_SHAPE, -1)[:, 1:]

    mixes = [not same(later(changed[s.name]), later(s)) for s in pair]
    if not any(mixes):
        return None

    return (pair[1], pair[0]) if mixes == [False, True] else pair
