"""HookPoint(site, layer) -> the module of any causal language model that carries it, found by structure.

No model family is named here. The block list is the one module list that has as many entries as the model has layers.
What attention and MLP add to the residual stream is found by one probing forward pass: the two module outputs whose sum
is the block's output minus its input.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, PlainSerializer
from torch import Tensor, nn

from sae.errors import ConfigError
from sae.model.language_model import LanguageModel

Site = Literal["resid_pre", "resid_post", "attn_out", "attn_z", "mlp_in", "mlp_hidden", "mlp_out"]
SITES: tuple[str, ...] = get_args(Site)
RUN_ORDER = ("resid_pre", "attn_z", "attn_out", "mlp_in", "mlp_hidden", "mlp_out", "resid_post")
PROBE_LENGTH = 8
TOLERANCE = 1e-4


class HookPoint(NamedTuple):
    """A place in the language model: a site of a block, written `resid_post.8`."""

    site: str
    layer: int

    def __str__(self) -> str:
        return f"{self.site}.{self.layer}"

    @classmethod
    def parse(cls, text: Any) -> HookPoint:
        """`HookPoint` of a text such as "mlp_out.5"; raises `ValueError` naming the sites."""
        if isinstance(text, HookPoint):
            return text
        match = re.fullmatch(r"([a-z_]+)\.(\d+)", str(text))
        if not match or match[1] not in SITES:
            raise ValueError(f"a hook point is site.layer with a site of {', '.join(SITES)}, such as resid_post.8")
        return cls(match[1], int(match[2]))


HookPointField = Annotated[
    HookPoint, BeforeValidator(HookPoint.parse), PlainSerializer(str, return_type=str, when_used="always")
]


class Channel(NamedTuple):
    """One tensor per token of the stream: the activation at a hook point, or a coefficient of the loss with regard to
    it.

    `gradient` is the gradient of the summed next-token cross-entropy; `relp` the same under the rules of `relevance`.
    """

    hook: HookPoint
    kind: Literal["activation", "gradient", "relp"] = "activation"

    def __str__(self) -> str:
        return str(self.hook) if self.kind == "activation" else f"{self.hook}:{self.kind}"


@dataclass(frozen=True)
class Place:
    """A module, and whether its input or its output is the hook point."""

    module: nn.Module
    name: str
    side: Literal["input", "output"]

    def watch(self, see: Callable[[Float[Tensor, " ..."]], Float[Tensor, " ..."] | None]) -> Any:
        """Calls `see` with the activations on every forward pass; a returned tensor replaces them."""
        if self.side == "output":
            return self.module.register_forward_hook(lambda _m, _a, output: _replaced(output, see(_tensor(output))))

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                new = see(_tensor(args[0]))
                return None if new is None else ((new, *args[1:]), kwargs)
            new = see(kwargs["hidden_states"])
            return None if new is None else (args, {**kwargs, "hidden_states": new})

        return self.module.register_forward_pre_hook(before, with_kwargs=True)


def _tensor(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple | list) else value


def _replaced(output: Any, new: Tensor | None) -> Any:
    if new is None:
        return None
    return (new, *output[1:]) if isinstance(output, tuple) else new


def blocks(model: nn.Module, n_layers: int) -> tuple[str, nn.ModuleList]:
    """(name, module list) of the transformer blocks: the one list of `n_layers` modules of one class."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and len({type(m) for m in module}) == 1
    ]
    # Nested lists of the same length (experts, say) lie inside the block list: the outermost is the block list.
    outer = [f for f in lists if not any(f[0].startswith(other[0] + ".") for other in lists)]
    if len(outer) != 1:
        names = ", ".join(name for name, _ in outer) or "none"
        raise ConfigError(f"{type(model).__name__}: cannot tell which module list holds the blocks (found: {names}).")

    return outer[0]


class _Seen(NamedTuple):
    """One module's tensors in the probing run, in order of completion."""

    name: str
    module: nn.Module
    input: Tensor | None
    output: Tensor


class _Captured(Exception):
    """Stops the forward pass where the probed block begins."""


def _as_float(value: Any) -> Any:
    """`value` with every floating tensor inside it in float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(_as_float(v) for v in value)
    if isinstance(value, dict):
        return {key: _as_float(v) for key, v in value.items()}
    return value


class _BlockProbe:
    """One block, run alone and in float32 on the input that a short forward pass brings it."""

    def __init__(self, lm: LanguageModel, name: str, block: nn.Module):
        self.name, self.block = name, block
        captured: list[Any] = []

        def capture(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured.extend((args, kwargs))
            raise _Captured

        handle = block.register_forward_pre_hook(capture, with_kwargs=True)
        vocabulary = lm.model.get_input_embeddings().num_embeddings
        ids = torch.arange(1, PROBE_LENGTH + 1, device=lm.device).remainder(vocabulary)[None]

        try:
            with torch.no_grad():
                lm.body(input_ids=ids, use_cache=False)
        except _Captured:
            pass
        finally:
            handle.remove()

        args, kwargs = _as_float(captured[0]), _as_float(captured[1])
        if args:
            self.before, self.args, self.kwargs = args[0], args[1:], kwargs
        else:
            self.before, self.args = kwargs.pop("hidden_states"), ()
            self.kwargs = kwargs

    def run(self, hidden: Float[Tensor, " ..."]) -> tuple[Float[Tensor, " ..."], list[_Seen]]:
        """(block output, what every module inside saw) for the block input `hidden`."""
        seen: list[_Seen] = []

        def record(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                module_input = _tensor(args[0] if args else kwargs.get("hidden_states"))
                if isinstance(_tensor(output), Tensor):
                    module_input = module_input.clone() if isinstance(module_input, Tensor) else None
                    seen.append(_Seen(name, module, module_input, _tensor(output).clone()))

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
                return _tensor(self.block(hidden, *self.args, **self.kwargs)), seen
        finally:
            for parameter, data in zip(self.block.parameters(), exact, strict=True):
                parameter.data = data
            for handle in handles:
                handle.remove()


def _same(a: Tensor, b: Tensor) -> bool:
    if a.numel() != b.numel():
        return False
    a, b = a.reshape(-1).float(), b.reshape(-1).float()
    return bool((a - b).norm() <= TOLERANCE * (b.norm() + 1e-30))


def _additive_pair(delta: Tensor, seen: list[_Seen]) -> tuple[int, int] | None:
    """Positions in `seen` of the two outputs that sum to `delta`: the innermost modules that do, in order of run."""
    fitting = [i for i, s in enumerate(seen) if s.output.numel() == delta.numel()]
    for i in fitting:
        rest = delta.reshape(-1) - seen[i].output.reshape(-1)
        for j in fitting:
            if j > i and seen[i].output.norm() > 0 and _same(seen[j].output, rest):
                return i, j
    return None


def _linears(seen: list[_Seen], first: int, last: int, tokens: int) -> list[_Seen]:
    """The linear modules (weight matrix, one input row per token) of `seen[first : last + 1]`, in order of run."""
    linears = []
    for s in seen[first : last + 1]:
        weight = getattr(s.module, "weight", None)
        is_matrix = isinstance(weight, Tensor) and weight.dim() == 2
        if is_matrix and s.input is not None and s.input.numel() == tokens * s.input.shape[-1]:
            linears.append(s)
    return linears


def find_places(lm: LanguageModel, layer: int) -> dict[str, Place]:
    """Site -> `Place` of one block. Sites that the model does not show (a sum formed inside a function) are absent."""
    list_name, block_list = blocks(lm.body, lm.n_layers)
    name, block = f"{list_name}.{layer}", block_list[layer]
    places = {"resid_pre": Place(block, name, "input"), "resid_post": Place(block, name, "output")}
    probe = _BlockProbe(lm, name, block)
    after, seen = probe.run(probe.before)
    pair = _additive_pair(after - probe.before, seen)
    if pair is None:
        return places

    attention, mlp = _attention_first(probe, seen, pair)
    for out_site, in_site, position, start in (
        ("attn_out", "attn_z", attention, 0 if attention < mlp else mlp + 1),
        ("mlp_out", "mlp_hidden", mlp, 0 if mlp < attention else attention + 1),
    ):
        places[out_site] = Place(seen[position].module, seen[position].name, "output")
        linears = _linears(seen, start, position, PROBE_LENGTH)
        if linears:
            places[in_site] = Place(linears[-1].module, linears[-1].name, "input")
        if out_site == "mlp_out" and linears and linears[0].input.shape[-1] == lm.d_model:  # pyright: ignore[reportOptionalMemberAccess]
            places["mlp_in"] = Place(linears[0].module, linears[0].name, "input")

    return places


def _attention_first(probe: _BlockProbe, seen: list[_Seen], pair: tuple[int, int]) -> tuple[int, int]:
    """`pair` as (attention, MLP): the attention is the one that depends on other positions, or that runs first.

    The block is run again on an input with another first position. An MLP that reads the block's own input keeps its
    other outputs. An MLP that reads the attention's output changes them, but such an MLP runs second.
    """
    nudged = probe.before.clone()
    nudged[:, 0] += probe.before[:, 1]
    _, changed = probe.run(nudged)
    shape = (PROBE_LENGTH, -1)
    mixes = [not _same(changed[i].output.reshape(shape)[1:], seen[i].output.reshape(shape)[1:]) for i in pair]

    return (pair[1], pair[0]) if mixes == [False, True] else pair


def resolve(lm: LanguageModel, hook: HookPoint) -> Place:
    """`Place` of a hook point; raises `ConfigError` that lists the sites of the model."""
    if not 0 <= hook.layer < lm.n_layers:
        raise ConfigError(f"hook point '{hook}': the model has layers 0..{lm.n_layers - 1}. Choose one of them.")
    places = find_places(lm, hook.layer)
    if hook.site not in places:
        offered = ", ".join(f"{site}.{hook.layer}" for site in places)
        raise ConfigError(f"hook point '{hook}': not found by structure in this model. It offers: {offered}.")
    return places[hook.site]


def check_hook_points(lm: LanguageModel, hooks: Iterable[HookPoint]) -> None:
    """Raises `ConfigError` if the model does not have one of the hook points."""
    for hook in dict.fromkeys(hooks):
        resolve(lm, hook)


def run_order(lm: LanguageModel, hooks: tuple[HookPoint, ...]) -> list[HookPoint]:
    """The hook points in the order in which a forward pass reaches them; the last is where it can stop."""
    return sorted(hooks, key=lambda h: (h.layer, RUN_ORDER.index(h.site)))
