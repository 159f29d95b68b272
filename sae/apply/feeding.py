"""Which latents of an earlier layer feed which latents of a later one, and by how much.

The edge from i to j is the mean over tokens of |z_i <d_i, df_j/dh>|: what latent i's part of the activation h adds to the summed
pre-activation f_j of the latent j at the tokens of its context on which it fires, to first order. This is the interaction of the local
interaction basis (Bushnaq et al. 2024, arXiv 2405.10928) with a dictionary's latents in place of its basis.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from sae.architectures import SparseAutoencoder
from sae.errors import ConfigError
from sae.model.hookpoints import HookPoint, run_order
from sae.stream.harvest import Harvester, Reached

PER_PASS = 4  # contexts of a pass: what it keeps for the way back grows with them


class Edges(NamedTuple):
    """The strongest sources of every target: latent of the earlier dictionary, weight, and its share of all weights of the target."""

    targets: Int[np.ndarray, " targets"]
    sources: Int[np.ndarray, "targets most"]
    weights: Float[np.ndarray, "targets most"]
    shares: Float[np.ndarray, "targets most"]


class _Pass(NamedTuple):
    """Activations of both hook points of one pass; the later ones lead back to the earlier ones."""

    earlier: Tensor
    later: Tensor


def check_pair(harvester: Harvester, earlier: SparseAutoencoder, later: SparseAutoencoder) -> None:
    """Raises `ConfigError` unless both are dictionaries of one hook point each, the first of an earlier one."""
    for sae in (earlier, later):
        if len(sae.config.reads) != 1 or sae.config.reads != sae.config.writes:
            raise ConfigError("edges are between dictionaries that read and write one hook point each.")
    hooks = (earlier.config.reads[0], later.config.reads[0])
    if hooks[0] == hooks[1] or run_order(harvester.lm, hooks)[0] != hooks[0]:
        raise ConfigError(f"{hooks[0]} is not before {hooks[1]}; give the dictionary of the earlier hook point first.")


def edges(
    harvester: Harvester,
    earlier: SparseAutoencoder,
    later: SparseAutoencoder,
    ids: Integer[np.ndarray, "contexts ctx_len"],
    *,
    targets: list[int],
    most: int = 10,
    tell: Callable[[int], None] = lambda _n: None,
) -> Edges:
    """The edges into some latents of the later dictionary, over contexts that are documents of their own.

    Each target needs one backward pass from its hook point to the earlier one for every four contexts; `tell` hears of contexts.
    """
    check_pair(harvester, earlier, later)
    totals = torch.zeros(len(targets), earlier.d_sae, device=harvester.lm.device)
    n_tokens = 0
    for start in range(0, len(ids), PER_PASS):
        part = ids[start : start + PER_PASS]
        tokens = torch.from_numpy(part.astype(np.int64)).to(harvester.lm.device)
        keep = harvester.keep(tokens, np.zeros_like(part))
        with torch.enable_grad():
            seen = _run(harvester, tokens, earlier.config.reads[0], later.config.reads[0])
            totals += _of_pass(seen, keep, earlier, later, targets=targets)
        n_tokens += int(keep.sum())
        tell(start + len(part))

    weights = totals / max(1, n_tokens)
    top = weights.topk(min(most, earlier.d_sae), dim=1)
    shares = top.values / weights.sum(1, keepdim=True).clamp_min(1e-30)
    return Edges(np.array(targets), *(part.cpu().numpy() for part in (top.indices, top.values, shares)))


def _run(harvester: Harvester, tokens: Tensor, first: HookPoint, last: HookPoint) -> _Pass:
    """One pass to the later hook point that can be led back to the earlier one."""
    seen: dict[HookPoint, Tensor] = {}

    def begin(x: Tensor) -> Tensor:
        seen[first] = x.detach().requires_grad_()
        return seen[first]

    def end(x: Tensor) -> None:
        seen[last] = x
        raise Reached

    with ExitStack() as stack, suppress(Reached):
        stack.callback(harvester.places[first].watch(begin).remove)
        stack.callback(harvester.places[last].watch(end).remove)
        harvester.lm.body(input_ids=tokens, use_cache=False)
    return _Pass(seen[first], seen[last])


def _of_pass(
    seen: _Pass, keep: Tensor, earlier: SparseAutoencoder, later: SparseAutoencoder, *, targets: list[int]
) -> Tensor:
    """Sum over tokens of |z_i <d_i, gradient>|, [targets, earlier latents]."""
    flat = keep.reshape(-1)
    x = later.prepared(seen.later.reshape(len(flat), -1)[flat].float()).x
    with torch.no_grad():
        before = earlier.prepared(seen.earlier.detach().reshape(len(flat), -1)[flat].float())
        code = earlier.encode(seen.earlier.detach().reshape(len(flat), -1)[flat].float())
        fired = later.encode(seen.later.detach().reshape(len(flat), -1)[flat].float())
    scale = 1.0 if before.deviation is None else before.deviation
    out = torch.zeros(len(targets), earlier.d_sae, device=x.device)

    for number, target in enumerate(targets):
        fires = ((fired.top_indices == target) & (fired.top_acts > 0)).any(1)
        if not fires.any():
            continue
        pre_acts = later.centre(x[fires]) @ later.W_enc[:, target]
        (gradient,) = torch.autograd.grad(pre_acts.sum(), seen.earlier, retain_graph=True)
        with torch.no_grad():
            rows = gradient.reshape(len(flat), -1)[flat].float() * scale
            along = (earlier.W_dec[code.top_indices] * rows[:, None, :]).sum(2)
            parts = (code.top_acts * along).abs()
            out[number].index_add_(0, code.top_indices.flatten(), parts.flatten())
    return out
