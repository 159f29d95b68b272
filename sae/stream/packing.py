"""What a forward pass is told so that documents packed into one context do not see each other, and the test of it."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int, Integer, Shaped
from torch import Tensor

from sae.errors import ConfigError
from sae.model.blocks import probe_ids
from sae.model.language_model import LanguageModel

# Relative difference of activations that rounding makes; what documents see of each other is larger by far.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.05}
REFUSALS = (TypeError, ValueError, RuntimeError, IndexError)  # of a model that has no use for positions or a mask


def positions_of(
    documents: Integer[np.ndarray, "contexts ctx_len"], packing: str
) -> Int[np.ndarray, "contexts ctx_len"]:
    """The model's positions [contexts, ctx_len]: from the start of the context or, packed `separate`, of the document."""
    places = np.broadcast_to(np.arange(documents.shape[1]), documents.shape)
    if packing == "joined":
        return places
    begins = np.ones(documents.shape, dtype=bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)


def attention_inputs(
    documents: Integer[np.ndarray, "contexts ctx_len"], packing: str, lm: LanguageModel
) -> dict[str, Shaped[Tensor, " ..."]]:
    """Extra inputs of the forward pass: for `separate` packing, positions that begin again with every document.

    Most families make the attention mask of every layer of them, with its window or its chunks. The others are given the
    mask: each token sees its document up to itself, which a layer with a window does not narrow. `check_separate` finds
    out what documents see of each other.
    """
    if packing == "joined":
        return {}

    positions = {"position_ids": torch.from_numpy(positions_of(documents, packing)).to(lm.device)}
    if lm.parts_documents_by_position:
        return positions

    owner = torch.from_numpy(documents.astype(np.int64)).to(lm.device)
    same = owner[:, :, None] == owner[:, None, :]
    places = torch.arange(owner.shape[1], device=owner.device)
    allowed = (same & (places[:, None] >= places))[:, None]
    mask = torch.zeros_like(allowed, dtype=lm.dtype).masked_fill(~allowed, torch.finfo(lm.dtype).min)

    return {"attention_mask": mask, **positions}


@torch.no_grad()
def check_separate(lm: LanguageModel, ctx_len: int) -> None:
    """Raises `ConfigError` unless two documents in a context of `ctx_len` tokens give what each gives alone.

    The first is a quarter of the context, so that the second reaches beyond every window that matters at this length.
    """
    ids = probe_ids(lm.model, lm.special_ids, (1, ctx_len))
    split = max(1, ctx_len // 4)
    extra = attention_inputs((np.arange(ctx_len) >= split).astype(np.int64)[None], "separate", lm)
    alone = torch.cat([lm.last_stream(part) for part in (ids[:, :split], ids[:, split:])], dim=1)
    try:
        packed = lm.last_stream(ids, **extra)
    except REFUSALS as error:
        raise ConfigError(f"text.packing: separate: this model takes no positions or mask ({error}). Use 'joined'.")

    difference = float((packed - alone).float().norm() / alone.float().norm())
    if not difference <= ROUNDING[lm.dtype]:
        raise ConfigError(
            f"text.packing: separate: in a context of {ctx_len} tokens this model reads a document as it does not alone "
            f"(activations differ by {difference:.1%}): its state goes on, its positions do not begin again, or its layers "
            "have windows that its mask does not. Use 'joined'."
        )
