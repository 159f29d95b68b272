"""HookPoint(site, layer) -> the module of any causal language model that carries it, found by structure.

No model family is named here. The blocks are the modules that read what the one before them wrote (`blocks`). What
attention and MLP add to the residual stream is found by one probing forward pass: the two module outputs whose sum is
the block's output minus its input. A site inside them is one only if what it feeds becomes that output: the router of
a mixture of experts is no MLP's hidden layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple, get_args
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, PlainSerializer
from torch import Tensor, nn

from sae.errors import ConfigError, NumericError
from sae.model.block_probe import BlockProbe, additive_pair, attention_and_mlp, encloses, last_linear, reader, same
from sae.model.blocks import PROBE_SHAPE, first_tensor
from sae.model.language_model import LanguageModel

Site = Literal["resid_pre", "resid_post", "attn_out", "attn_z", "mlp_in", "mlp_hidden", "mlp_out"]
SITES: tuple[str, ...] = get_args(Site)
PREDICTED = "predicted_"  # before a site: what a temporal dictionary predicts there from the tokens before
RUN_ORDER = ("resid_pre", "attn_z", "attn_out", "mlp_in", "mlp_hidden", "mlp_out", "resid_post")


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
        if not match or match[1].removeprefix(PREDICTED) not in SITES:
            raise ValueError(f"a hook point is site.layer with a site of {', '.join(SITES)}, such as resid_post.8")
        return cls(match[1], int(match[2]))

    @property
    def predicted(self) -> HookPoint:
        """What a temporal dictionary predicts here."""
        return HookPoint(f"{PREDICTED}{self.site}", self.layer)

    @property
    def place(self) -> HookPoint:
        """The hook point in the model, also that of a prediction."""
        return HookPoint(self.site.removeprefix(PREDICTED), self.layer)


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
    """A module, whether its input or its output is the hook point, and how many numbers that is per token.

    With `predict` it is what is predicted of the activations there, which can be seen and not be replaced.
    """

    module: nn.Module
    name: str
    side: Literal["input", "output"]
    width: int
    predict: Callable[[Float[Tensor, "contexts length d"]], Float[Tensor, "contexts length d"]] | None = None
    home: torch.device | None = None  # where activations of a spread model are looked at

    def watch(self, see: Callable[[Float[Tensor, " ..."]], Float[Tensor, " ..."] | None]) -> Any:
        """Calls `see` with the activations on every forward pass; a returned tensor replaces them."""
        if (home := self.home) is not None:

            def see_at_home(x: Tensor) -> Tensor | None:
                new = see(x.to(home))
                return None if new is None else new.to(x.device)

            return replace(self, home=None).watch(see_at_home)

        if (predict := self.predict) is not None:

            def look(x: Tensor) -> None:
                see(predict(x).to(x.dtype))

            return replace(self, predict=None).watch(look)

        if self.side == "output":
            return self.module.register_forward_hook(
                lambda _m, _a, output: _replaced(output, see(first_tensor(output)))
            )

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                new = see(first_tensor(args[0]))
                return None if new is None else ((new, *args[1:]), kwargs)
            new = see(kwargs["hidden_states"])
            return None if new is None else (args, {**kwargs, "hidden_states": new})

        return self.module.register_forward_pre_hook(before, with_kwargs=True)


def _replaced(output: Any, new: Tensor | None) -> Any:
    if new is None:
        return None
    return type(output)((new, *output[1:])) if isinstance(output, tuple | list) else new


_SITES: WeakKeyDictionary[nn.Module, dict[int, dict[str, Place]]] = WeakKeyDictionary()  # by model and layer


def find_places(lm: LanguageModel, layer: int) -> dict[str, Place]:
    """Site -> `Place` of one block. Sites that the model does not show (a sum formed inside a function) are absent.

    A block is probed once: where its sites are does not change while the model is in memory.
    """
    by_layer = _SITES.setdefault(lm.model, {})
    if layer not in by_layer:
        by_layer[layer] = {site: replace(place, home=lm.home) for site, place in _probed(lm, layer).items()}
    return dict(by_layer[layer])


def _probed(lm: LanguageModel, layer: int) -> dict[str, Place]:
    name, block = f"{lm.blocks.name}.{layer}", lm.blocks.modules[layer]
    places = {
        "resid_pre": Place(block, name, "input", lm.d_model),
        "resid_post": Place(block, name, "output", lm.d_model),
    }
    probe = BlockProbe(lm, name, block)
    after, seen = probe.run(probe.before)
    if not torch.isfinite(after).all():
        raise NumericError(f"{name}: its output is not finite: {lm.why_not_finite()}")
    pair = additive_pair(after - probe.before, seen)
    roles = attention_and_mlp(probe, seen, pair) if pair else None
    if roles is None:
        return places

    attention, mlp = roles
    for out_site, inner_site, out, other in (
        ("attn_out", "attn_z", attention, mlp),
        ("mlp_out", "mlp_hidden", mlp, attention),
    ):
        first = seen.index(other) + 1 if seen.index(other) < seen.index(out) else 0
        sub_layer = seen[first : seen.index(out) + 1]
        around = [s for s in seen if s in sub_layer or encloses(s, out)]
        sites = {inner_site: last_linear(sub_layer)}
        if out is mlp:
            sites["mlp_in"] = reader([s for s in around if not encloses(s, other)])
        places[out_site] = Place(out.module, out.name, "output", lm.d_model)
        for site, s in sites.items():
            if s is None or s.input is None:
                continue
            place = Place(s.module, s.name, "input", s.input.numel() // math.prod(PROBE_SHAPE))
            if _is_all_that_reaches(probe, place, places[out_site]):
                places[site] = place

    return places


def _is_all_that_reaches(probe: BlockProbe, inner: Place, outer: Place) -> bool:
    """Whether zeros at `inner` make the output at `outer` the same for every token."""
    handle = inner.watch(torch.zeros_like)
    try:
        seen = probe.run(probe.before)[1]
    finally:
        handle.remove()
    rows = next(s.output for s in seen if s.name == outer.name).reshape(math.prod(PROBE_SHAPE), -1)
    return same(rows, rows[:1].expand_as(rows))


def resolve(lm: LanguageModel, hook: HookPoint) -> Place:
    """`Place` of a hook point; raises `ConfigError` that lists the sites of the model."""
    return resolve_all(lm, (hook,))[hook]


def resolve_all(lm: LanguageModel, hooks: Iterable[HookPoint]) -> dict[HookPoint, Place]:
    """`Place` of every hook point; raises `ConfigError` that lists the sites of the model if it has not one of them."""
    places: dict[HookPoint, Place] = {}
    for wanted in hooks:
        hook = wanted.place
        if not 0 <= hook.layer < lm.n_layers:
            raise ConfigError(f"hook point '{hook}': the model has layers 0..{lm.n_layers - 1}. Choose one of them.")
        if hook.layer not in lm.blocks.running:
            raise ConfigError(
                f"hook point '{hook}': text does not run this layer. It runs {', '.join(map(str, lm.blocks.running))}."
            )
        sites = find_places(lm, hook.layer)
        if hook.site not in sites:
            offered = ", ".join(f"{site}.{hook.layer}" for site in sites)
            raise ConfigError(
                f"hook point '{hook}': this layer has no such site that saedex can find. It has: {offered}."
            )
        place = sites[hook.site]
        places[wanted] = place if wanted == hook else replace(place, predict=_predictor(lm, wanted))
    return places


def _predictor(lm: LanguageModel, hook: HookPoint) -> Callable[[Tensor], Tensor]:
    if hook not in lm.predictors:
        raise ConfigError(f"hook point '{hook}': no temporal dictionary that predicts it is loaded. Use {hook.place}.")
    return lm.predictors[hook]


def run_order(lm: LanguageModel, hooks: tuple[HookPoint, ...]) -> list[HookPoint]:
    """The hook points in the order in which a forward pass reaches them; the last is where it can stop."""
    return sorted(hooks, key=lambda h: (h.layer, RUN_ORDER.index(h.place.site), h == h.place))
