"""A dictionary as plain tensors: what foreign formats hold, whatever they call it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sae.architectures import SparseAutoencoder, build
from sae.architectures.jumprelu import JumpReluConfig
from sae.errors import ArtefactError, ConfigError
from sae.model.hookpoints import HookPoint

Kind = Literal["topk", "jumprelu", "relu", "gated"]


@dataclass(frozen=True)
class Plain:
    """a = kind((x - b_dec) W_enc + b_enc), x_hat = a W_dec + b_dec (+ x W_skip); x as it is where not `centred`.

    W_enc [d_in, d_sae], W_dec [d_sae, d_out]; `more` holds threshold [d_sae], r_mag and b_mag [d_sae], W_skip.
    """

    kind: Kind
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    k: int | None = None
    centred: bool = True
    token_norm: bool = False
    more: dict[str, Tensor] = field(default_factory=dict)
    lossy: str | None = None  # what the form does not keep, in words
    facts: dict[str, Any] = field(default_factory=dict)  # model, hook, ctx_len, ...

    def as_centred(self, wanted: bool) -> Plain:
        """The same map with the other convention: b_enc' = b_enc -/+ b_dec W_enc."""
        if wanted == self.centred:
            return self
        if self.b_dec.shape[0] != self.W_enc.shape[0]:
            raise ConfigError("a dictionary that reads one space and writes another cannot be centred by its b_dec.")
        shift = self.b_dec @ self.W_enc
        return replace(self, centred=wanted, b_enc=self.b_enc + (shift if wanted else -shift))


def plain_of(sae: SparseAutoencoder, card: dict[str, Any]) -> Plain:
    """The dictionary as it computes at inference without gradients; raises `ConfigError` where no form fits."""
    state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    config, tag = sae.config, card["sae"]["architecture"]
    facts = {
        "model": card.get("model", {}).get("name", "unknown"),
        "hook": str(config.hook),
        "ctx_len": card.get("text", {}).get("ctx_len"),
        "architecture": tag,
        "median_norm": card.get("filters", {}).get("median_norm"),
    }
    shared = {name: state[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    base: dict[str, Any] = {**shared, "centred": sae.centred, "token_norm": config.token_norm, "facts": facts}
    k = card["sae"].get("k")
    if tag in ("topk", "gradient"):
        return Plain("topk", k=k, **base)
    if tag == "transcoder":
        skip = {"W_skip": state["W_skip"]} if "W_skip" in state else {}
        return Plain("topk", k=k, more=skip, **base)
    if tag in ("batch_topk", "matryoshka", "top_afa", "jumprelu"):
        threshold = state["threshold"].clamp_min(0).expand(sae.d_sae).contiguous()
        lossy = "k(x) of top-AFA became one threshold with the same mean l0" if tag == "top_afa" else None
        return Plain("jumprelu", more={"threshold": threshold}, lossy=lossy, **base)
    if tag == "relu":
        return Plain("relu", **base)
    if tag == "gated":
        return Plain("gated", more={name: state[name] for name in ("r_mag", "b_mag")}, **base)
    raise ConfigError(f"architecture {tag!r}: no foreign format holds it. Keep the folder itself.")


def module_of(plain: Plain, name: str) -> SparseAutoencoder:
    """Our module of a plain dictionary; raises `ArtefactError` where shapes do not fit together."""
    hook = HookPoint.parse(plain.facts["hook"])
    d_in, d_sae = plain.W_enc.shape
    d_out = plain.W_dec.shape[1]
    settings: dict[str, Any] = {"name": name, "hook": hook, "d_sae": d_sae, "token_norm": plain.token_norm}
    transcodes = "target" in plain.facts
    if transcodes and plain.kind != "topk":
        raise ConfigError(f"a transcoder that computes as {plain.kind}: saedex has TopK transcoders only.")
    if transcodes:
        settings |= {"target": plain.facts["target"], "skip": "W_skip" in plain.more}
    if plain.kind == "topk":
        settings["k"] = plain.k
    if plain.kind == "jumprelu":
        settings["target_l0"] = min(JumpReluConfig.model_fields["target_l0"].default, d_sae)
    from pydantic import TypeAdapter

    from sae.architectures import SaeConfig

    settings["architecture"] = "transcoder" if transcodes else plain.kind
    config: Any = TypeAdapter(SaeConfig).validate_python(settings)  # pyright: ignore[reportArgumentType]
    sae = build(config, d_in, d_out)
    given = plain.as_centred(not transcodes)
    tensors = {"W_enc": given.W_enc, "b_enc": given.b_enc, "W_dec": given.W_dec, "b_dec": given.b_dec, **given.more}
    own = sae.state_dict()
    for key, tensor in tensors.items():
        if key not in own or own[key].shape != tensor.shape:
            wanted = tuple(own[key].shape) if key in own else "absent"
            raise ArtefactError(f"{key} has shape {tuple(tensor.shape)}, the other tensors ask for {wanted}.")
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
    whole = ~at_the_edge.any(1)
    decoded = (x_hats[0] - x_hats[1])[whole].abs().max() / x_hats[0].abs().max().clamp_min(1e-30)
    return float(torch.maximum(acts, decoded))
