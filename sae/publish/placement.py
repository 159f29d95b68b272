"""Where a dictionary's weights lie: on the GPU, or its two tables in the host's memory if the GPU has no room for them."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from sae.architectures import SparseAutoencoder

S = TypeVar("S", bound=SparseAutoencoder[Any])
SHARE = 0.5  # of a GPU's free memory that the tables may take
TABLES = ("W_enc", "W_dec")


def placed(sae: S, device: torch.device) -> S:
    """The dictionary, ready to read rows on `device`.

    Tables that would take more than half of a GPU's free memory stay where they are. Codes are then chosen while pieces of
    the encoder pass through the GPU, and the decoder's rows are brought as they are named: the same codes, more slowly.
    """
    if device.type != "cuda":
        return sae.to(device)
    if sae.b_dec.device.type == "cuda":  # it was placed before
        return sae
    n_bytes = sum(sae.get_parameter(name).numel() * 4 for name in TABLES)
    if n_bytes <= SHARE * torch.cuda.mem_get_info(device)[0] or not can_stay(sae):
        return sae.to(device)
    return with_tables_elsewhere(sae, device)


def can_stay(sae: SparseAutoencoder[Any]) -> bool:
    """Whether this architecture chooses latents by bounds, or a number for each token, outside of training."""
    return sae.selects == "k_per_token" or sae.selection_bounds() is not None


def with_tables_elsewhere(sae: S, device: torch.device) -> S:
    """The dictionary with everything but its tables on `device`."""
    for name, parameter in list(sae.named_parameters()):
        if name not in TABLES:
            setattr(sae, name, nn.Parameter(parameter.detach().to(device), requires_grad=parameter.requires_grad))
    for name, buffer in list(sae.named_buffers()):
        sae.register_buffer(name, buffer.to(device), persistent=name not in sae._non_persistent_buffers_set)
    return sae
