"""A dictionary in the form of foreign files, with the same names for all libraries."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from feature_store.dictionary_files import DictionaryCard
from sae.architectures import SparseAutoencoder, build
from sae.architectures.jumprelu import JumpReluConfig
from sae.errors import ArtefactError, ConfigError
from sae.model.hookpoints import HookPoint

Kind = Literal["topk", "jumprelu", "relu", "gated"]


@dataclass(frozen=True)
class ForeignWeights:
    """a = kind((x - b_dec) W_enc + b_enc), x_hat = a W_dec + b_dec (+ x W_skip); without b_dec in the input if not
    `centred`.

    W_enc [d_in, d_sae], W_dec [d_sae, d_out]; `extra` holds threshold [d_sae], r_mag and b_mag [d_sae], W_skip.
    """

    kind: Kind
    W_enc: Float[Tensor, "_d_in _d_sae"]
    b_enc: Float[Tensor, " _d_sae"]
    W_dec: Float[Tensor, "_d_sae _d_out"]
    b_dec: Float[Tensor, " _d_out"]
    k: int | None = None
    centred: bool = True
    token_norm: bool = False
    extra: dict[str, Float[Tensor, " ..."]] = field(default_factory=dict)
    lossy: str | None = None  # what this form does not keep, in words
    facts: dict[str, Any] = field(default_factory=dict)  # model, hook, ctx_len, ...

    def as_centred(self, wanted: bool) -> ForeignWeights:
        """The same map with the other convention: b_enc' = b_enc -/+ b_dec W_enc."""
        if wanted == self.centred:
            return self
        if self.b_dec.shape[0] != self.W_enc.shape[0]:
            raise ConfigError("a dictionary that reads one space and writes another cannot be centred by its b_dec.")
        shift = self.b_dec @ self.W_enc
        return replace(self, centred=wanted, b_enc=self.b_enc + (shift if wanted else -shift))


def weights_of(sae: SparseAutoencoder, card: DictionaryCard) -> ForeignWeights:
    """The dictionary as it computes at inference without gradients; raises `ConfigError` if no form fits."""
    config, architecture = sae.config, card.sae["architecture"]
    if sae.computes_as is None:
        raise ConfigError(f"architecture {architecture!r}: no foreign format holds it. Keep the folder itself.")

    state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    extra = {name: state[name] for name in sae.foreign_tensors if name in state}
    if "threshold" in extra:  # one for all, or one per latent; foreign forms hold one per latent, and none is negative
        extra["threshold"] = extra["threshold"].clamp_min(0).expand(sae.d_sae).contiguous()

    return ForeignWeights(
        sae.computes_as,
        W_enc=state["W_enc"],
        b_enc=state["b_enc"],
        W_dec=state["W_dec"],
        b_dec=state["b_dec"],
        k=card.sae.get("k") if sae.computes_as == "topk" else None,
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
    """Our module with these weights; raises `ArtefactError` if their shapes do not fit together."""
    hook = HookPoint.parse(weights.facts["hook"])
    d_in, d_sae = weights.W_enc.shape
    d_out = weights.W_dec.shape[1]
    settings: dict[str, Any] = {"name": name, "hook": hook, "d_sae": d_sae, "token_norm": weights.token_norm}
    transcodes = "target" in weights.facts
    if transcodes and weights.kind != "topk":
        raise ConfigError(f"a transcoder that computes as {weights.kind}: saedex has TopK transcoders only.")
    if transcodes:
        settings |= {"target": weights.facts["target"], "skip": "W_skip" in weights.extra}
    if weights.kind == "topk":
        settings["k"] = weights.k
    if weights.kind == "jumprelu":
        settings["target_l0"] = min(JumpReluConfig.model_fields["target_l0"].default, d_sae)

    from pydantic import TypeAdapter

    from sae.architectures import SaeConfig

    settings["architecture"] = "transcoder" if transcodes else weights.kind
    config: Any = TypeAdapter(SaeConfig).validate_python(settings)  # pyright: ignore[reportArgumentType]
    sae = build(config, d_in, d_out)
    converted = weights.as_centred(not transcodes)
    tensors = {
        "W_enc": converted.W_enc,
        "b_enc": converted.b_enc,
        "W_dec": converted.W_dec,
        "b_dec": converted.b_dec,
        **converted.extra,
    }
    state = sae.state_dict()

    for key, tensor in tensors.items():
        if key not in state or state[key].shape != tensor.shape:
            expected_shape = tuple(state[key].shape) if key in state else "absent"
            raise ArtefactError(f"{key} has shape {tuple(tensor.shape)}, the other tensors need {expected_shape}.")

    sae.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})

    return sae.eval().requires_grad_(False)


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
