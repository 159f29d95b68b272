"""Which heads and which source positions a latent of an attention dictionary comes from, by weight and by activation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures import SparseAutoencoder
from sae.errors import ConfigError
from sae.model.hookpoints import HookPoint
from sae.model.language_model import LanguageModel
from sae.stream.harvest import Reached

WRITTEN_OUT = "saedex_written_out"
PER_PASS = 16  # contexts


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


class Firing(NamedTuple):
    """A latent that fires at the last of the tokens `ids`, which are a context up to there."""

    latent: int
    ids: Int[np.ndarray, " length"]


class FiringAttribution(NamedTuple):
    """What every source position [length] and every head [heads] contributes to one firing; both sum to the same."""

    by_source: Float[np.ndarray, " length"]
    by_head: Float[np.ndarray, " heads"]


class TracedAttention(NamedTuple):
    """One layer's attention pattern [contexts, heads, length, length] and values [contexts, heads, length, d_head]."""

    pattern: Float[Tensor, "contexts heads length length"]
    values: Float[Tensor, "contexts heads length d_head"]


@contextmanager
def _written_out(lm: LanguageModel, module: torch.nn.Module, seen: list[TracedAttention]) -> Iterator[None]:
    """Runs the model's attention written out up to the layer of `module`, whose pattern and values it keeps."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attend(
        layer: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        if layer is not module and mask is None and not (options.get("softcap") or options.get("sliding_window")):
            return ALL_ATTENTION_FUNCTIONS["sdpa"](layer, query, key, value, None, is_causal=True, **options)

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
            seen.append(TracedAttention(pattern, value.float()))
            raise Reached

        return (pattern.to(value.dtype) @ value).transpose(1, 2).contiguous(), pattern

    ALL_ATTENTION_FUNCTIONS.register(WRITTEN_OUT, attend)
    before = lm.model.config._attn_implementation
    lm.model.set_attn_implementation(WRITTEN_OUT)

    try:
        yield
    finally:
        lm.model.set_attn_implementation(before)


def traced_attention(lm: LanguageModel, layer: int, ids: Int[Tensor, "contexts length"]) -> TracedAttention:
    """What the attention of one layer does on some contexts; gradients of the values lead back if they are enabled.

    Raises `ConfigError` for a model whose attention cannot be told.
    """
    seen: list[TracedAttention] = []
    with _written_out(lm, _attention_of(lm, layer), seen), suppress(Reached):
        lm.body(input_ids=ids.to(lm.device), use_cache=False)
    return seen[0]


def _attention_of(lm: LanguageModel, layer: int) -> torch.nn.Module:
    """The module of a block that computes attention: the one that knows its layer and its head size."""
    block = lm.blocks.modules[layer]
    modules = [m for m in block.modules() if getattr(m, "layer_idx", None) == layer and "Attention" in type(m).__name__]
    if not modules:
        raise ConfigError(f"layer {layer}: no attention module that saedex can trace; attribution needs one.")
    return modules[0]


def check_attributable(sae: SparseAutoencoder) -> HookPoint:
    """The hook point of a dictionary of heads' outputs; raises `ConfigError` for any other, and for one with `token_norm`."""
    if [h.site for h in sae.config.reads] != ["attn_z"]:
        raise ConfigError(f"attribution by head needs a dictionary at one attn_z, this one is at {sae.config.hook}.")
    if sae.config.token_norm:
        raise ConfigError("attribution by head: with token_norm the pre-activation is no sum over heads and positions.")
    return sae.config.reads[0]


@torch.no_grad()
def attribute(lm: LanguageModel, sae: SparseAutoencoder, latent: int, ids: Int[Tensor, " ctx_len"]) -> Attribution:
    """Which source positions and heads a latent's pre-activation comes from, for one context `ids` [ctx_len].

    DFA_i[t, s] = sum_k A^k[t, s] <v^k[s], W_enc^k_i>; by head <z^k[t], W_enc^k_i> (Kissane et al. 2024,
    arXiv 2406.17759, section 2.3). Exact, because z^k[t] = sum_s A^k[t, s] v^k[s]: attention is run written out.
    """
    attention = traced_attention(lm, check_attributable(sae).layer, ids[None])
    per_head = attention.pattern[0] * _weights(sae, attention, torch.tensor([latent]))[0][:, None, :]  # [heads, t, s]
    by_source, by_head = per_head.sum(0), per_head.sum(2).T

    return Attribution(by_source, by_head, by_head.sum(1))


def parts_of_firings(
    sae: SparseAutoencoder, attention: TracedAttention, latents: Int[Tensor, " n"], last: Int[Tensor, " n"]
) -> Float[Tensor, "n heads length"]:
    """What each head contributes from each source position to latent i at the token `last` of context i."""
    rows = torch.arange(len(latents), device=last.device)
    return attention.pattern[rows, :, last] * _weights(sae, attention, latents)


def _weights(sae: SparseAutoencoder, attention: TracedAttention, latents: Tensor) -> Tensor:
    """<v^k[s], W_enc^k_i> of latent i in context i, [contexts, heads, length]."""
    return torch.einsum("nksd,nkd->nks", attention.values, _directions(sae, attention, latents))


def _directions(sae: SparseAutoencoder, attention: TracedAttention, latents: Tensor) -> Tensor:
    return sae.W_enc.T[latents.to(sae.W_enc.device)].view(len(latents), attention.values.shape[1], -1)


class Padded(NamedTuple):
    """Token ids of contexts [n, length], the latent of each, and the place of the token on which it fires."""

    ids: Int[Tensor, "n length"]
    latents: Int[Tensor, " n"]
    last: Int[Tensor, " n"]


def padded(firings: Sequence[Firing]) -> Padded:
    """Contexts of different lengths as one tensor; what is put behind them no token before can see."""
    longest = max(len(firing.ids) for firing in firings)
    rows = [np.pad(firing.ids.astype(np.int64), (0, longest - len(firing.ids)), mode="edge") for firing in firings]
    last = torch.tensor([len(firing.ids) - 1 for firing in firings])
    return Padded(torch.from_numpy(np.stack(rows)), torch.tensor([firing.latent for firing in firings]), last)


@torch.no_grad()
def attribute_firings(
    lm: LanguageModel,
    sae: SparseAutoencoder,
    firings: Sequence[Firing],
    *,
    tell: Callable[[int], None] = lambda _n: None,
) -> list[FiringAttribution]:
    """The attribution of every firing; a context with several is read once, up to its last. `tell` hears of firings."""
    layer, out, done = check_attributable(sae).layer, [FiringAttribution(np.zeros(0), np.zeros(0))] * len(firings), 0
    groups = sorted(_by_context(firings), key=lambda numbers: len(firings[numbers[0]].ids))
    for start in range(0, len(groups), PER_PASS):
        part = groups[start : start + PER_PASS]
        attention = traced_attention(lm, layer, padded([firings[numbers[0]] for numbers in part]).ids)
        for row, numbers in enumerate(part):
            latents = torch.tensor([firings[number].latent for number in numbers])
            last = torch.tensor([len(firings[number].ids) - 1 for number in numbers], device=lm.device)
            weights = torch.einsum("ksd,nkd->nks", attention.values[row], _directions(sae, attention, latents))
            parts = (attention.pattern[row][:, last].transpose(0, 1) * weights).double().cpu().numpy()
            for number, part_of in zip(numbers, parts, strict=True):
                out[number] = FiringAttribution(part_of.sum(0)[: len(firings[number].ids)], part_of.sum(1))
            done += len(numbers)
        tell(done)
    return out


def _by_context(firings: Sequence[Firing]) -> list[list[int]]:
    """Numbers of firings whose tokens are a beginning of those of the first in their list."""
    rows = [firing.ids.astype(np.int64).tobytes() for firing in firings]
    groups: list[list[int]] = []
    for number in sorted(
        range(len(rows)), key=lambda n: rows[n], reverse=True
    ):  # what begins a row comes right after it
        if groups and rows[groups[-1][0]].startswith(rows[number]):
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups
