"""A dictionary in the form of foreign files, with the same names for all libraries."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from feature_store.dictionary_files import DictionaryCard
from sae.architectures import SparseAutoencoder, build
from sae.architectures.jumprelu import JumpReluConfig
from sae.errors import ArtefactError, ConfigError
from sae.foundation.tensor_files import finite
from sae.model.hookpoints import HookPoint
from sae.publish.card import config_of

KEEP_K = ("topk", "matching_pursuit")
SETTINGS = {"matching_pursuit": ("stops_on_repeat",)}
NOT_PER_LATENT = {"W_skip", "residual_threshold"}
SCALED_WITH_LATENTS = {"threshold", "b_mag"}  # in units of a latent's activation
Kind = Literal["topk", "jumprelu", "relu", "gated", "matching_pursuit"]


@dataclass(frozen=True)
class ForeignWeights:
    """a = kind((x - b_dec) W_enc + b_enc), x_hat = a W_dec + b_dec (+ x W_skip); without b_dec in the input if not
    `centred`.

    W_enc [d_in, d_sae], W_dec [d_sae, d_out]; `extra` holds threshold [d_sae], r_mag and b_mag [d_sae], W_skip, residual_threshold [].
    """

    kind: Kind
    W_enc: Float[Tensor, "_d_in _d_sae"]
    b_enc: Float[Tensor, " _d_sae"]
    W_dec: Float[Tensor, "_d_sae _d_out"]
    b_dec: Float[Tensor, " _d_out"]
    k: Any = None  # as the file says it; `module_of` checks it
    centred: bool = True
    token_norm: bool | Literal["length"] = False
    extra: dict[str, Float[Tensor, " ..."]] = field(default_factory=dict)
    more: dict[str, Float[Tensor, " ..."]] = field(default_factory=dict)  # further tensors, as our module calls them
    settings: dict[str, Any] = field(default_factory=dict)  # of our architecture of that kind, beside k
    lossy: str | None = None  # what this form does not keep, in words
    facts: dict[str, Any] = field(default_factory=dict)  # model, hook, ctx_len, ...

    def as_centred(self, wanted: bool) -> ForeignWeights:
        """The same map with the other convention: b_enc' = b_enc -/+ b_dec W_enc, and so for all that read the input."""
        if wanted == self.centred:
            return self
        if self.b_dec.shape[0] != self.W_enc.shape[0]:
            raise ConfigError("a dictionary that reads one space and writes another cannot be centred by its b_dec.")

        shift = self.b_dec @ self.W_enc
        shift = shift if wanted else -shift
        extra = dict(self.extra)
        if self.kind == "gated":  # the magnitude path reads the input times exp(r_mag)
            extra["b_mag"] = extra["b_mag"] + extra["r_mag"].exp() * shift

        return replace(self, centred=wanted, b_enc=self.b_enc + shift, extra=extra)

    def with_unit_rows(self) -> ForeignWeights:
        """The same map with decoder rows of norm 1: latents that are selected one by one take the scale themselves."""
        norms = self.W_dec.norm(dim=1)
        extra = {name: tensor * norms if name in SCALED_WITH_LATENTS else tensor for name, tensor in self.extra.items()}
        return replace(
            self, W_enc=self.W_enc * norms, b_enc=self.b_enc * norms, W_dec=self.W_dec / norms[:, None], extra=extra
        )

    def selected_by_norm(self) -> ForeignWeights:
        """The same weights where a latent is selected by z ||d||, d its decoder row, and not by z.

        JumpReLU's thresholds become t / ||d||; a latent whose row is 0 never fires. TopK gets rows of norm 1. ReLU stays.
        """
        if self.kind == "topk":
            return self.with_unit_rows()
        if "threshold" not in self.extra:
            return self
        norms, never = self.W_dec.norm(dim=1), torch.finfo(torch.float32).max
        threshold = torch.where(norms > 0, self.extra["threshold"] / norms, never).clamp_max(never)
        return replace(self, extra={**self.extra, "threshold": threshold})

    def with_signs_apart(self) -> ForeignWeights:
        """The same map of latents that may be negative: latent i for their positive part, i + d_sae for the negative one.

        Keeping the k largest |z| of n latents is keeping the k largest of ReLU(z) and ReLU(-z), which are 2 n; the second
        half reads and writes the opposite of the first.
        """
        note = f"latents could be negative: {len(self.b_enc):,} onwards are the negative parts of the first, with the opposite row"
        return replace(
            self,
            W_enc=torch.cat([self.W_enc, -self.W_enc], dim=1),
            b_enc=torch.cat([self.b_enc, -self.b_enc]),
            W_dec=torch.cat([self.W_dec, -self.W_dec]),
            facts={**self.facts, "note": note},
        )

    def scaled(self, read: float, written: float) -> ForeignWeights:
        """The same weights for inputs and outputs in other units: s W_enc, W_dec / s and b_dec / s, with s of each."""
        return replace(self, W_enc=self.W_enc * read, W_dec=self.W_dec / written, b_dec=self.b_dec / written)

    def check_shapes(self) -> None:
        """Raises `ArtefactError` with all tensors whose shapes do not fit those of W_enc and W_dec."""
        (d_in, d_sae), d_out = self.W_enc.shape, self.W_dec.shape[1]
        per_latent = {name: tensor for name, tensor in self.extra.items() if name not in NOT_PER_LATENT}
        wanted = {
            "W_enc": (self.W_enc, (max(d_in, 1), max(d_sae, 1))),
            "b_enc": (self.b_enc, (d_sae,)),
            "W_dec": (self.W_dec, (d_sae, max(d_out, 1))),
            "b_dec": (self.b_dec, (d_out,)),
            **{name: (tensor, (d_sae,)) for name, tensor in per_latent.items()},
        }
        if "W_skip" in self.extra:
            wanted["W_skip"] = (self.extra["W_skip"], (d_in, d_out))

        wrong = [
            f"{name} has shape {tuple(tensor.shape)}, the other tensors need {shape}"
            for name, (tensor, shape) in wanted.items()
            if tuple(tensor.shape) != shape
        ]
        if wrong:
            raise ArtefactError(f"{'; '.join(wrong)}.")


def weights_of(sae: SparseAutoencoder, card: DictionaryCard) -> ForeignWeights:
    """The dictionary as it computes at inference without gradients; raises `ConfigError` if no form fits."""
    config, architecture = sae.config, card.sae["architecture"]
    context = card.sae.get("context")  # of a temporal dictionary
    if sae.computes_as is None or (len(config.reads) > 1 and not context):
        raise ConfigError(f"architecture {architecture!r}: no foreign format holds it. Keep the folder itself.")

    state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    extra = {name: state[name] for name in sae.foreign_tensors if name in state}
    if "threshold" in extra:  # one for all, or one per latent; foreign forms hold one per latent, and none is negative
        extra["threshold"] = extra["threshold"].clamp_min(0).expand(sae.d_sae).contiguous()

    return ForeignWeights(
        cast("Kind", sae.computes_as),
        W_enc=state["W_enc"],
        b_enc=state["b_enc"],
        W_dec=state["W_dec"],
        b_dec=state["b_dec"],
        k=card.sae.get("k") if sae.computes_as in KEEP_K else None,
        settings={name: card.sae[name] for name in SETTINGS.get(sae.computes_as, ())}
        | ({"context": context, "skip": True} if context else {}),
        more={name: tensor for name, tensor in state.items() if name.startswith("context.")},
        centred=sae.centred,
        token_norm=config.token_norm,
        extra=extra,
        lossy=sae.lost_in_foreign_form,
        facts={
            "model": card.model.name,
            "hook": str(config.hook),
            "ctx_len": card.text.ctx_len,
            "architecture": architecture,
            "median_norm": card.filters.median_norm if card.filters else None,
        },
    )


def module_of(weights: ForeignWeights, name: str) -> SparseAutoencoder:
    """Our module with these weights; raises `ArtefactError` if something in them cannot be."""
    weights.check_shapes()
    hook = HookPoint.parse(weights.facts["hook"])
    d_in, d_sae = weights.W_enc.shape
    d_out = weights.W_dec.shape[1]
    settings: dict[str, Any] = {"name": name, "hook": hook, "d_sae": d_sae, "token_norm": weights.token_norm}
    settings |= weights.settings
    transcodes = "target" in weights.facts
    if transcodes and weights.kind == "gated":
        raise ConfigError("a transcoder that computes as gated: saedex has TopK, JumpReLU and ReLU transcoders.")
    if transcodes and weights.kind == "relu":  # ReLU(z) is JumpReLU with thresholds 0
        weights = replace(
            weights, kind="jumprelu", extra={**weights.extra, "threshold": torch.zeros_like(weights.b_enc)}
        )
    if transcodes:
        settings |= {"target": weights.facts["target"], "skip": "W_skip" in weights.extra}
    if weights.kind in KEEP_K:
        settings["k"] = _checked_k(weights.k, d_sae)
    if weights.facts.get("more_hooks"):
        settings["more_hooks"] = weights.facts["more_hooks"]
    if weights.kind == "jumprelu":
        said_l0 = weights.facts.get("l0") or JumpReluConfig.model_fields["target_l0"].default
        settings["target_l0"] = min(said_l0, d_sae)

    settings["architecture"] = "transcoder" if transcodes and weights.kind == "topk" else weights.kind
    sae = build(config_of(settings, "the settings of the dictionary"), d_in, d_out)
    converted = weights.as_centred(not transcodes)
    tensors = {
        "W_enc": converted.W_enc,
        "b_enc": converted.b_enc,
        "W_dec": converted.W_dec,
        "b_dec": converted.b_dec,
        **converted.extra,
        **converted.more,
    }
    state = sae.state_dict()

    for key, tensor in tensors.items():
        if key not in state or state[key].shape != tensor.shape:
            expected_shape = tuple(state[key].shape) if key in state else "absent"
            raise ArtefactError(f"{key} has shape {tuple(tensor.shape)}, the other tensors need {expected_shape}.")

    sae.load_state_dict({key: finite(tensor.float(), key) for key, tensor in tensors.items()})

    return sae.eval().requires_grad_(False)


def _checked_k(k: Any, d_sae: int) -> int:
    if k is None:
        raise ArtefactError(f"the file has no k, the number of latents that a token keeps (1..{d_sae}).")
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= d_sae:
        raise ArtefactError(f"k is {k!r}, allowed is 1..{d_sae}.")
    return k


@torch.no_grad()
def largest_difference(a: SparseAutoencoder, b: SparseAutoencoder, spread: float, rows: int = 1000) -> float:
    """Largest difference of activations and reconstructions on random rows, relative to their largest value.

    Rows are b_dec plus noise of norm `spread`. A latent right at its threshold, or tied for the last place (within
    1e-4), may fall on either side by rounding: such a latent is not counted, nor is its row's reconstruction.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, a.d_in, generator=generator) * spread / a.d_in**0.5
    x = x + a.b_dec if a.centred else x
    a, b = a.float().cpu(), b.float().cpu()
    a.selection_dtype = b.selection_dtype = torch.float32
    codes = [sae.encode(x) for sae in (a, b)]
    dense = [torch.zeros(rows, a.d_sae).scatter_add(1, code.top_indices, code.top_acts) for code in codes]
    larger = torch.maximum(*dense)
    least = torch.where(larger > 0, larger, torch.inf).min(1, keepdim=True).values
    bound = least if "threshold" not in a.state_dict() else torch.as_tensor(a.state_dict()["threshold"])
    at_the_edge = (torch.minimum(*dense) == 0) & (larger > 0) & ((larger - bound).abs() <= 1e-4 * (bound.abs() + 1e-6))
    acts = ((dense[0] - dense[1]).abs() * ~at_the_edge).max() / larger.max().clamp_min(1e-30)
    x_hats = [sae.decode(code, x) for sae, code in zip((a, b), codes, strict=True)]
    is_comparable_row = ~at_the_edge.any(1)
    decoded = (x_hats[0] - x_hats[1])[is_comparable_row].abs().max() / x_hats[0].abs().max().clamp_min(1e-30)

    return float(torch.maximum(acts, decoded))
