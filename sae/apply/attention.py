"""Where an attention dictionary's latents come from: which heads (by weight), which source positions (by activation)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures import SparseAutoencoder
from sae.errors import ConfigError
from sae.model.hookpoints import HookPoint
from sae.model.language_model import LanguageModel

TRACED = "saedex_traced"


def head_shares(sae: SparseAutoencoder, n_heads: int) -> Float[Tensor, "d_sae heads"]:
    """Share of every head in every latent's decoder row, [d_sae, heads]; rows sum to 1.

    h_ik = ||d_i^k|| / sum_j ||d_i^j|| with d_i^k the block of head k (Kissane et al. 2024, arXiv 2406.17759).
    """
    norms = sae.W_dec.view(sae.d_sae, n_heads, -1).norm(dim=2)
    return norms / norms.sum(1, keepdim=True).clamp_min(1e-30)


class Attribution(NamedTuple):
    """Direct feature attribution of one latent at one context.

    by_source [ctx_len, ctx_len]: what position s contributes at position t; by_head [ctx_len, heads]. Both sum to the
    pre-activation without its bias terms, <z[t], W_enc[:, i]>, which is `total` [ctx_len].
    """

    by_source: Float[Tensor, "ctx_len ctx_len"]
    by_head: Float[Tensor, "ctx_len heads"]
    total: Float[Tensor, " ctx_len"]


class _Traced(NamedTuple):
    """One layer's attention pattern [heads, ctx_len, ctx_len] and values [heads, ctx_len, d_head]."""

    pattern: Tensor
    values: Tensor


@contextmanager
def _traced(lm: LanguageModel, module: torch.nn.Module, seen: list[_Traced]) -> Iterator[None]:
    """Runs the model's attention written out, and keeps pattern and values of the layer that `module` belongs to."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attend(
        layer: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        scaling = options.get("scaling") or query.shape[-1] ** -0.5
        scores = query.float() @ key.float().transpose(2, 3) * scaling
        if options.get("softcap"):
            scores = (scores / options["softcap"]).tanh() * options["softcap"]

        length = scores.shape[-1]
        causal = torch.ones(length, length, dtype=torch.bool, device=scores.device).tril()
        if options.get("sliding_window"):
            causal &= ~causal.tril(-options["sliding_window"])

        scores = scores.masked_fill(~causal, -torch.inf)
        if mask is not None:
            scores = (
                scores + mask[..., :length].float()
                if mask.dtype != torch.bool
                else scores.masked_fill(~mask, -torch.inf)
            )

        pattern = scores.softmax(dim=-1)
        if layer is module:
            seen.append(_Traced(pattern[0], value[0].float()))

        return (pattern.to(value.dtype) @ value).transpose(1, 2).contiguous(), pattern

    ALL_ATTENTION_FUNCTIONS.register(TRACED, attend)
    before = lm.model.config._attn_implementation
    lm.model.set_attn_implementation(TRACED)

    try:
        yield
    finally:
        lm.model.set_attn_implementation(before)


def _attention_of(lm: LanguageModel, layer: int) -> torch.nn.Module:
    """The module of a block that computes attention: the one that knows its layer and its head size."""
    block = lm.blocks.modules[layer]
    modules = [m for m in block.modules() if getattr(m, "layer_idx", None) == layer and "Attention" in type(m).__name__]
    if not modules:
        raise ConfigError(f"layer {layer}: no attention module that saedex can trace; attribution needs one.")
    return modules[0]


@torch.no_grad()
def attribute(lm: LanguageModel, sae: SparseAutoencoder, latent: int, ids: Int[Tensor, " ctx_len"]) -> Attribution:
    """Which source positions and heads a latent's pre-activation comes from, for one context `ids` [ctx_len].

    DFA_i[t, s] = sum_k A^k[t, s] <v^k[s], W_enc^k_i>; by head <z^k[t], W_enc^k_i> (Kissane et al. 2024,
    arXiv 2406.17759, section 2.3). Exact, because z^k[t] = sum_s A^k[t, s] v^k[s]: attention is run written out.
    """
    hook: HookPoint = sae.config.hook
    if [h.site for h in sae.config.reads] != ["attn_z"]:
        raise ConfigError(f"attribution by head needs a dictionary at one attn_z, this one is at {hook}.")

    seen: list[_Traced] = []
    with _traced(lm, _attention_of(lm, hook.layer), seen):
        lm.body(input_ids=ids[None].to(lm.device), use_cache=False)

    pattern, values = seen[0]
    directions = sae.W_enc[:, latent].view(len(values), -1)  # [heads, d_head]
    weights = torch.einsum("ksd,kd->ks", values, directions)
    per_head = pattern * weights[:, None, :]  # [heads, t, s]
    by_source, by_head = per_head.sum(0), per_head.sum(2).T

    return Attribution(by_source, by_head, by_head.sum(1))
