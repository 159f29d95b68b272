"""What every component of a model does to a prediction: by patching it, and as gradients estimate it.

A component c is the activation of one site and layer at one position. The prediction is M = logit(answer) - logit(wrong) at the
last position. Patching gives c the value that it has in the corrupt prompt: effect = M(clean, c <- corrupt) - M(clean).
Attribution patching (Nanda 2023) estimates all effects from one backward pass, (c_corrupt - c_clean) dM/dc. RelP (Rezaei Jafari
et al. 2025, arXiv 2508.21258) takes the coefficients of `relevance` for dM/dc. Integrated gradients (Hanna et al. 2024, arXiv
2403.17806) take the mean of dM/dc over inputs between the clean and the corrupt one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.apply.patching.prompts import PairIds
from sae.model.hookpoints import HookPoint, Place, find_places
from sae.model.language_model import LanguageModel
from sae.model.relevance import RelevanceRules

SITES = ("resid_post", "attn_out", "mlp_out")
METHODS = ("gradient", "relp", "integrated")
STEPS = 8  # inputs between the clean and the corrupt one
ROWS = 256  # prompts of a pass, each with one component patched


class Pass(NamedTuple):
    """One prompt: the prediction M, and at every hook point the activations and dM / d activation, both [length, width]."""

    metric: float
    values: dict[HookPoint, Float[Tensor, "length _width"]]
    coefficients: dict[HookPoint, Float[Tensor, "length _width"]]


class Patch(NamedTuple):
    """New activations [n, width] of one hook point, each for one position of the prompt."""

    hook: HookPoint
    positions: Int[Tensor, " n"]
    values: Float[Tensor, "n width"]


class Patcher:
    """Runs a model on prompts of a pair, with activations replaced; `hooks` are those of all sites and the given ones."""

    def __init__(self, lm: LanguageModel, further: Sequence[HookPoint] = ()):
        self.lm = lm
        self.rules = RelevanceRules(lm)
        self.places: dict[HookPoint, Place] = {}
        wanted = set(further)
        layers = {layer: find_places(lm, layer) for layer in sorted(lm.blocks.running)}
        for layer, places in layers.items():
            for site, place in places.items():
                hook = HookPoint(site, layer)
                if site in SITES or hook in wanted:
                    self.places[hook] = place
        self.components = [hook for hook in self.places if hook.site in SITES]
        self.start = next(iter(layers.values()))["resid_pre"]

    def read(
        self, ids: Int[np.ndarray, " length"], pair: PairIds, *, relp: bool = False, between: float | None = None
    ) -> Pass:
        """The prompt `ids`, with the coefficients of gradients or RelP; `between` 0 and 1 the input lies between both."""
        values: dict[HookPoint, Tensor] = {}
        live: dict[HookPoint, Tensor] = {}

        def take(hook: HookPoint, x: Tensor) -> Tensor:
            x = x if x.requires_grad else x.detach().requires_grad_()
            live[hook], values[hook] = x, x.detach().reshape(len(ids), -1).float().clone()
            return x

        with ExitStack() as stack:
            if between is not None:
                stack.callback(self.start.watch(self._mixed(pair, between)).remove)
            for hook, place in self.places.items():
                stack.callback(place.watch(lambda x, hook=hook: take(hook, x)).remove)
            stack.enter_context(self.rules.active() if relp else nullcontext())
            stack.enter_context(torch.enable_grad())
            metric = self._metrics(self._tokens(ids[None]), pair)[0]
            gradients = torch.autograd.grad(metric, list(live.values()), allow_unused=True, materialize_grads=True)

        coefficients = {hook: g.reshape(len(ids), -1).float() for hook, g in zip(live, gradients, strict=True)}
        return Pass(float(metric.detach()), values, coefficients)

    def integrated(self, pair: PairIds, steps: int = STEPS) -> dict[HookPoint, Float[Tensor, "length _width"]]:
        """The mean of dM/dc over inputs between the clean and the corrupt one, by the midpoint rule."""
        total: dict[HookPoint, Tensor] = {}
        for step in range(steps):
            part = self.read(pair.clean, pair, between=(step + 0.5) / steps).coefficients
            total = {hook: g / steps + total.get(hook, 0) for hook, g in part.items()}
        return total

    @torch.no_grad()
    def patched(
        self, pair: PairIds, patches: Sequence[Patch], rows: Sequence[int], n_rows: int
    ) -> Float[np.ndarray, " rows"]:
        """M of the clean prompt `n_rows` times, each with the patches whose number in `rows` is its own."""
        out = np.zeros(n_rows)
        for start in range(0, n_rows, ROWS):
            n = min(ROWS, n_rows - start)
            with ExitStack() as stack:
                by_hook: dict[HookPoint, list[tuple[int, Patch]]] = {}
                for row, patch in zip(rows, patches, strict=True):
                    if start <= row < start + n:
                        by_hook.setdefault(patch.hook, []).append((row - start, patch))
                for hook, own_patches in by_hook.items():
                    stack.callback(self.places[hook].watch(_replacement(own_patches, n, len(pair.clean))).remove)
                tokens = self._tokens(np.repeat(pair.clean[None], n, axis=0))
                out[start : start + n] = self._metrics(tokens, pair).double().cpu().numpy()
        return out

    def _mixed(self, pair: PairIds, share: float):
        """Replaces what enters the first layer by a mixture of what both prompts send there."""
        corrupt = self._input(pair.corrupt)
        return lambda x: ((1 - share) * x.detach() + share * corrupt.reshape(x.shape)).detach()

    @torch.no_grad()
    def _input(self, ids: np.ndarray) -> Tensor:
        seen: list[Tensor] = []
        handle = self.start.watch(lambda x: seen.append(x.detach().clone()))
        try:
            self.lm.body(input_ids=self._tokens(ids[None]), use_cache=False)
        finally:
            handle.remove()
        return seen[0]

    def _tokens(self, ids: np.ndarray) -> Tensor:
        return torch.from_numpy(ids.astype(np.int64)).to(self.lm.device)

    def _metrics(self, tokens: Tensor, pair: PairIds) -> Tensor:
        logits = self.lm.model(input_ids=tokens, use_cache=False, logits_to_keep=1).logits[:, -1].float()
        return logits[:, pair.answer] - logits[:, pair.wrong]


def _replacement(patches: list[tuple[int, Patch]], n: int, length: int):
    """A hook that puts the values of patches into their rows and positions."""
    rows = torch.cat([torch.full_like(patch.positions, row) for row, patch in patches])
    positions = torch.cat([patch.positions for _, patch in patches])
    values = torch.cat([patch.values for _, patch in patches])

    def replace(x: Tensor) -> Tensor:
        out = x.reshape(n, length, -1).clone()
        out[rows.to(x.device), positions.to(x.device)] = values.to(x)
        return out.reshape(x.shape)

    return replace


class ComponentEffects(NamedTuple):
    """One pair: M of both prompts, and by hook point and position (from the first difference on) the true effect, the
    estimates of every method, and the size of the change, all [hooks, positions].
    """

    clean: float
    corrupt: float
    true: Float[np.ndarray, "hooks positions"]
    estimates: dict[str, Float[np.ndarray, "hooks positions"]]
    sizes: Float[np.ndarray, "hooks positions"]


class PairReading(NamedTuple):
    """Everything that the passes of one pair gave: both prompts, and the coefficients by method."""

    clean: Pass
    corrupt: Pass
    coefficients: dict[str, dict[HookPoint, Float[Tensor, "length _width"]]]


def read_pair(patcher: Patcher, pair: PairIds) -> PairReading:
    """Three passes with a way back, and `STEPS` for integrated gradients."""
    clean, corrupt = (patcher.read(ids, pair) for ids in (pair.clean, pair.corrupt))
    coefficients = {
        "gradient": clean.coefficients,
        "relp": patcher.read(pair.clean, pair, relp=True).coefficients,
        "integrated": patcher.integrated(pair),
    }
    return PairReading(clean, corrupt, coefficients)


def component_effects(patcher: Patcher, pair: PairIds, reading: PairReading) -> ComponentEffects:
    """True and estimated effects of every component at every position from the first difference on."""
    positions = torch.arange(pair.first, len(pair.clean), device=patcher.lm.device)
    n, patches = len(positions), []
    for hook in patcher.components:
        values = reading.corrupt.values[hook]
        patches += [Patch(hook, position[None], values[position][None]) for position in positions]
    true = patcher.patched(pair, patches, range(len(patches)), len(patches)) - reading.clean.metric

    changes = {
        hook: (reading.corrupt.values[hook] - reading.clean.values[hook])[positions] for hook in patcher.components
    }
    estimates = {
        method: np.stack([_dot(changes[hook], coefficients[hook][positions]) for hook in patcher.components])
        for method, coefficients in reading.coefficients.items()
    }
    sizes = np.stack([changes[hook].norm(dim=1).double().cpu().numpy() for hook in patcher.components])

    return ComponentEffects(reading.clean.metric, reading.corrupt.metric, true.reshape(-1, n), estimates, sizes=sizes)


def _dot(a: Tensor, b: Tensor) -> np.ndarray:
    return (a * b).sum(1).double().cpu().numpy()
