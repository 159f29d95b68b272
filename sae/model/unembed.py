"""Which tokens a latent's decoder direction promotes: through the rest of its sub-layer, final norm and unembedding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.errors import ConfigError
from sae.model.hookpoints import HookPoint, resolve
from sae.model.language_model import LanguageModel

ROWS = 256


class Logits(NamedTuple):
    """Tokens and logit differences from the mean token, [d_sae, n] each."""

    promoted: Int[Tensor, "d_sae n"]
    promoted_logits: Float[Tensor, "d_sae n"]
    suppressed: Int[Tensor, "d_sae n"]
    suppressed_logits: Float[Tensor, "d_sae n"]


def final_norm(lm: LanguageModel) -> nn.Module:
    """The normalisation before the unembedding: the last norm-like module that a forward pass runs."""
    last: list[nn.Module] = []
    handles = []

    for module in lm.body.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 1 and len(weight) == lm.d_model:
            handles.append(module.register_forward_hook(lambda m, _a, _o: last.append(m)))

    try:
        with torch.no_grad():
            lm.body(input_ids=torch.ones(1, 2, dtype=torch.int64, device=lm.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()

    if not last:
        raise ConfigError("the model has no final norm that saedex can find; logits of latents need one.")

    return last[-1]


def residual_directions(
    lm: LanguageModel, hook: HookPoint, rows: Float[Tensor, "rows width"]
) -> Float[Tensor, "rows d_model"]:
    """What decoder rows add to the residual stream: themselves, or their image under the sub-layer's last linear map."""
    if hook.site not in ("attn_z", "mlp_hidden"):
        return rows
    linear = resolve(lm, hook).module
    return linear(rows) - linear(torch.zeros_like(rows[:1]))


@torch.no_grad()
def token_logits(lm: LanguageModel, hook: HookPoint, w_dec: Float[Tensor, "d_sae width"], n: int) -> Logits:
    """The `n` tokens each latent promotes and suppresses most.

    logits = U norm(d) minus their mean over the vocabulary, with d the unit decoder row: the norm's own scaling
    stands in for the residual stream's, so values compare within a latent rather than across.
    """
    norm, head = final_norm(lm), lm.model.get_output_embeddings()
    weight = head.weight[: len(lm.tokenizer)]  # rows beyond the tokenizer are padding
    dtype = weight.dtype
    bias = getattr(norm, "bias", None)
    parts: list[list[Tensor]] = [[], [], [], []]

    for rows in w_dec.split(ROWS):
        normed = norm(residual_directions(lm, hook, rows.to(dtype))[None])[0]
        if isinstance(bias, Tensor):
            normed = normed - bias
        logits = torch.nn.functional.linear(normed, weight).float()
        logits -= logits.mean(dim=1, keepdim=True)
        top, bottom = logits.topk(n, dim=1), (-logits).topk(n, dim=1)
        for part, value in zip(parts, (top.indices, top.values, bottom.indices, -bottom.values), strict=True):
            part.append(value.cpu())

    return Logits(*(torch.cat(part) for part in parts))


@torch.no_grad()
def nearest(w_dec: Float[Tensor, "d_sae width"], n: int) -> tuple[Int[Tensor, "d_sae n"], Float[Tensor, "d_sae n"]]:
    """(latents, cosines), [d_sae, n] each: the nearest other decoder rows, blockwise."""
    rows = torch.nn.functional.normalize(w_dec, dim=1)
    indices, cosines = [], []
    for start in range(0, len(rows), 1024):
        cosine = rows[start : start + 1024] @ rows.T
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -2
        top = cosine.topk(min(n, len(rows) - 1), dim=1)
        indices.append(top.indices)
        cosines.append(top.values)
    return torch.cat(indices).cpu(), torch.cat(cosines).cpu()
