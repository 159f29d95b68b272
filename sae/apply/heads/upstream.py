"""Which latents of earlier dictionaries a firing of an attention latent comes from, and the same of these in turn.

The strongest source position s of a firing contributes sum_k A^k[t, s] <v^k[s], W_enc^k_i>. With the pattern A and the scale of the
normalisation held constant this is linear in the residual stream before the layer, x[s], with the gradient g. A latent j of an
earlier dictionary writes z_j d_j there (W_O d_j if it is one of attention), so it contributes z_j <d_j, g>. If it is itself one of
attention, the question can be asked of it: recursive attribution (Kissane et al. 2024, arXiv 2406.17759).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.apply.direction import output_weight
from sae.apply.heads.attribution import (
    PER_PASS,
    Firing,
    Padded,
    check_attributable,
    padded,
    parts_of_firings,
    traced_attention,
)
from sae.architectures import SparseAutoencoder
from sae.errors import ConfigError
from sae.model.hookpoints import HookPoint, Place, resolve_all, run_order
from sae.model.language_model import LanguageModel
from sae.model.relevance import frozen_scales

SHOWN = 3  # latents of every earlier dictionary
WRITERS = (
    "resid_pre",
    "resid_post",
    "attn_out",
    "mlp_out",
)  # sites whose activations are the residual stream or added to it


class Source(NamedTuple):
    """The strongest source position of a firing, its share of the pre-activation without biases, and the latents there.

    `latents` has for every earlier dictionary its strongest latents with their shares of the pre-activation.
    """

    position: int
    share: float
    latents: dict[str, list[tuple[int, float]]]


class Edge(NamedTuple):
    """One step of a recursive attribution: the firing, `depth` steps before the first one, and where it comes from."""

    first_latent: int
    depth: int
    dictionary: str
    firing: Firing
    source: Source


def check_upstream(lm: LanguageModel, sae: SparseAutoencoder, earlier: Mapping[str, SparseAutoencoder]) -> None:
    """Raises `ConfigError` for an earlier dictionary whose latents do not write into the stream before the layer of `sae`."""
    hook = check_attributable(sae)
    for name, other in earlier.items():
        config = other.config
        if (
            len(config.writes) != 1
            or config.reads != config.writes
            or config.writes[0].site not in (*WRITERS, "attn_z")
        ):
            raise ConfigError(f"{name}: earlier dictionaries are at one of {', '.join((*WRITERS, 'attn_z'))}.")
        is_before = run_order(lm, (config.writes[0], hook))[0] == config.writes[0]
        if config.writes[0] == hook or not is_before:
            raise ConfigError(f"{name}: {config.writes[0]} is not before {hook}.")


def sources_of(
    lm: LanguageModel, sae: SparseAutoencoder, firings: Sequence[Firing], earlier: Mapping[str, SparseAutoencoder]
) -> list[Source]:
    """The strongest source position of every firing, and the latents of earlier dictionaries that it comes from."""
    check_upstream(lm, sae, earlier)
    hooks = {name: other.config.writes[0] for name, other in earlier.items()}
    places = resolve_all(lm, {HookPoint("resid_pre", sae.config.reads[0].layer), *hooks.values()})
    rows = {name: _written(places[hooks[name]], other) for name, other in earlier.items()}
    out: list[Source] = []
    for start in range(0, len(firings), PER_PASS):
        batch = padded(firings[start : start + PER_PASS])
        seen = _led_back(lm, sae, batch, places)
        parts = {name: _parts(earlier[name], rows[name], seen, hooks[name]) for name in earlier}
        for number in range(len(batch.latents)):
            total = float(seen.totals[number]) or float("nan")
            strongest = {
                name: [
                    (int(latent), float(part) / total) for latent, part in zip(*(x[number] for x in both), strict=True)
                ]
                for name, both in parts.items()
            }
            share = float(seen.contributions[number]) / total
            out.append(Source(int(seen.positions[number]), share, strongest))
    return out


class _LedBack(NamedTuple):
    """Strongest source positions of a pass, what they contribute of which totals, the gradients of that with regard to the
    residual stream there [n, d_model], and the activations at all hook points [n, width] there.
    """

    positions: Tensor
    contributions: Tensor
    totals: Tensor
    gradients: Tensor
    activations: dict[HookPoint, Tensor]


def _led_back(lm: LanguageModel, sae: SparseAutoencoder, batch: Padded, places: Mapping[HookPoint, Place]) -> _LedBack:
    begin = HookPoint("resid_pre", sae.config.reads[0].layer)
    live: list[Tensor] = []
    values: dict[HookPoint, Tensor] = {}
    rows = torch.arange(len(batch.latents), device=lm.device)

    def take(hook: HookPoint, x: Tensor) -> Tensor | None:
        values[hook] = x.detach().reshape(*batch.ids.shape, -1)
        if hook != begin:
            return None
        live.append(x.detach().requires_grad_())
        return live[0]

    with ExitStack() as stack:
        for hook, place in places.items():
            stack.callback(place.watch(lambda x, hook=hook: take(hook, x)).remove)
        stack.enter_context(frozen_scales(lm))
        stack.enter_context(torch.enable_grad())
        attention = traced_attention(lm, begin.layer, batch.ids)
        attention = attention._replace(pattern=attention.pattern.detach())
        by_source = parts_of_firings(sae, attention, batch.latents, batch.last.to(lm.device)).sum(1)
        positions = by_source.detach().argmax(1)
        contributions = by_source[rows, positions]
        (gradients,) = torch.autograd.grad(contributions.sum(), live[0])

    at_source = {hook: x[rows, positions].float() for hook, x in values.items()}
    return _LedBack(
        positions, contributions.detach(), totals=by_source.detach().sum(1),
        gradients=gradients.reshape(*batch.ids.shape, -1)[rows, positions].float(), activations=at_source,
    )  # fmt: skip


@torch.no_grad()
def _written(place: Place, sae: SparseAutoencoder) -> Float[Tensor, "d_sae d_model"]:
    """What a unit of every latent adds to the residual stream: its decoder row, through W_O for heads' outputs."""
    rows = sae.W_dec.detach().float()
    if sae.config.writes[0].site in WRITERS:
        return rows
    return rows @ output_weight(place).T


@torch.no_grad()
def _parts(sae: SparseAutoencoder, rows: Tensor, seen: _LedBack, hook: HookPoint) -> tuple[np.ndarray, np.ndarray]:
    """The strongest latents [n, SHOWN] at the source positions, and what each contributes."""
    x = seen.activations[hook]
    code = sae.encode(x)
    deviation = sae.prepared(x).deviation
    parts = code.top_acts * torch.einsum("nkd,nd->nk", rows[code.top_indices], seen.gradients)
    if deviation is not None:  # back from the token's normalised space
        parts = parts * deviation
    top = parts.topk(min(SHOWN, parts.shape[1]), dim=1)
    return code.top_indices.gather(1, top.indices).cpu().numpy(), top.values.cpu().numpy()


def recursive_attribution(
    lm: LanguageModel,
    start: tuple[str, SparseAutoencoder],
    firings: Sequence[Firing],
    earlier: Mapping[str, SparseAutoencoder],
    *,
    step: Callable[[], None] = lambda: None,
) -> list[Edge]:
    """The steps back from every firing: from its strongest source on to the strongest attention latent there, while there is one.

    `step` is called after each round.
    """
    edges: list[Edge] = []
    name, sae = start
    rounds: dict[str, list[tuple[int, Firing]]] = {name: [(firing.latent, firing) for firing in firings]}
    dictionaries, depth = {**earlier, name: sae}, 0
    while any(rounds.values()):
        following: dict[str, list[tuple[int, Firing]]] = {}
        for name, asked in rounds.items():
            before = {other: earlier[other] for other in earlier if _is_before(lm, earlier[other], dictionaries[name])}
            for (first, firing), source in zip(
                asked, sources_of(lm, dictionaries[name], [f for _, f in asked], before), strict=True
            ):
                edges.append(Edge(first, depth, name, firing, source=source))
                heads = [(part, other, latent) for other, rows in source.latents.items() for latent, part in rows[:1]
                         if before[other].config.writes[0].site == "attn_z" and part > 0]  # fmt: skip
                if heads:
                    _, other, latent = max(heads)
                    following.setdefault(other, []).append((first, Firing(latent, firing.ids[: source.position + 1])))
        rounds, depth = following, depth + 1
        step()
    return edges


def _is_before(lm: LanguageModel, one: SparseAutoencoder, other: SparseAutoencoder) -> bool:
    hooks = one.config.writes[0], other.config.writes[0]
    return hooks[0] != hooks[1] and run_order(lm, hooks)[0] == hooks[0]
