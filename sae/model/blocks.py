"""Finds the transformer blocks of a model by what flows through them: each one's output is the next one's input."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sae.errors import ConfigError

PROBE_SHAPE = (2, 8)  # contexts and tokens of a short pass; they differ, so that swapped axes show


class Blocks(NamedTuple):
    """The list of blocks, its name in the model, and how many numbers the residual stream has per token.

    `running` are the blocks that text runs: those that read an image, say, are passed over without one.
    """

    name: str
    modules: nn.ModuleList
    width: int
    running: tuple[int, ...]

    @property
    def last(self) -> nn.Module:
        """The last block that runs."""
        return self.modules[self.running[-1]]


class _Call(NamedTuple):
    """What a module read and wrote in one pass; None if its stream is no single tensor."""

    module: nn.Module
    input: Tensor | None
    output: Tensor | None


def probe_ids(
    model: nn.Module, special_ids: list[int], shape: tuple[int, int] = PROBE_SHAPE
) -> Int[Tensor, "contexts length"]:
    """Token ids for a trial: in a fixed random order, different and not special as far as the vocabulary has enough."""
    weight: Tensor = model.get_input_embeddings().weight  # pyright: ignore[reportCallIssue, reportAssignmentType]
    head: Any = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    n_tokens = len(weight) if head is None else min(len(weight), len(head.weight))
    order = torch.randperm(n_tokens, generator=torch.Generator().manual_seed(0))
    plain = order[~torch.isin(order, torch.tensor(special_ids, dtype=torch.int64))]
    n_ids = math.prod(shape)
    return plain.repeat(-(-n_ids // len(plain)))[:n_ids].view(shape).to(weight.device)


def first_tensor(value: Any) -> Any:
    """The value itself, or the first entry of what a module returns as a tuple or list."""
    return value[0] if isinstance(value, tuple | list) else value


def find_blocks(body: nn.Module, ids: Int[Tensor, "contexts length"]) -> Blocks:
    """The outermost module list whose modules run one after the other on the same stream in a pass over `ids`.

    Raises `ConfigError` if there is none or several, or if the stream is not laid out by context and token.
    """
    lists = {name: module for name, module in body.named_modules() if isinstance(module, nn.ModuleList) and len(module)}
    calls = _calls(body, {module for modules in lists.values() for module in modules}, ids)
    chains = {name: running for name, modules in lists.items() if (running := _chain(modules, calls))}
    outer = [name for name in chains if not any(name.startswith(other + ".") for other in chains)]
    longest = max((len(chains[name]) for name in outer), default=0)
    blocks = [name for name in outer if len(chains[name]) == longest]
    if len(blocks) != 1:
        raise ConfigError(
            f"{type(body).__name__}: cannot tell which modules are its blocks, each reading what the one before it wrote "
            f"(module lists that fit: {', '.join(blocks) or 'none'}). saedex finds no hook points in this model."
        )

    modules, running = lists[blocks[0]], chains[blocks[0]]
    stream = next(call.input for call in calls if call.module is modules[running[0]])
    n_contexts, length = ids.shape
    if stream is None or (stream.shape[:2] != (n_contexts, length) and stream.shape[0] != n_contexts * length):
        shape = None if stream is None else list(stream.shape)
        raise ConfigError(
            f"{type(body).__name__}: its blocks read a tensor {shape} for {n_contexts} contexts of {length} tokens, which "
            "is not laid out by context and token. saedex finds no hook points in this model."
        )

    return Blocks(blocks[0], modules, stream.numel() // (n_contexts * length), running)


def _stream(value: Any) -> Tensor | None:
    """The one tensor that carries the stream, or None: a reversible network, say, has two of the same shape."""
    tensor = first_tensor(value)
    if not isinstance(tensor, Tensor):
        return None
    others = value[1:] if isinstance(value, tuple | list) else ()
    is_alone = all(not isinstance(other, Tensor) or other.shape != tensor.shape for other in others)
    return tensor if is_alone else None


def _calls(body: nn.Module, modules: set[nn.Module], ids: Tensor) -> list[_Call]:
    """What the modules read and wrote in a pass, in order of their beginning."""
    calls: list[_Call] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(_Call(module, _stream(args[0] if args else kwargs.get("hidden_states")), _stream(output)))

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        with torch.no_grad():
            body(input_ids=ids, use_cache=False)
    except Exception as error:  # whatever the code of a model may raise
        raise ConfigError(
            f"{type(body).__name__}: a pass over token ids alone fails ({error}); saedex cannot harvest it."
        )
    finally:
        for handle in handles:
            handle.remove()

    return calls


def _chain(modules: nn.ModuleList, calls: list[_Call]) -> tuple[int, ...]:
    """The modules that ran, if each ran once, in the list's order, on what the one before it wrote; else none.

    More than half of a list must have run.
    """
    places = {module: place for place, module in enumerate(modules)}
    ran = [call for call in calls if call.module in places]
    running = tuple(places[call.module] for call in ran)
    if list(running) != sorted(set(running)) or len(running) <= len(modules) // 2:
        return ()

    streams = [(before.output, after.input) for before, after in pairwise(ran)]
    follow = all(a is not None and b is not None and _equal(a, b) for a, b in streams)
    return running if ran[0].input is not None and follow else ()


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers; of a damaged model also the same that are none."""
    return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
