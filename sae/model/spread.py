"""A language model spread over the GPUs of one machine: its blocks in order, each whole on one of them."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from sae.errors import UnavailableError


def spread(model: nn.Module, device: torch.device) -> None:
    """Puts the parts of a model on all GPUs, the fewest on the first, where dictionaries train.

    Inputs travel with the pass (accelerate's hooks). Raises `UnavailableError` if there are not several GPUs for one process,
    or if they do not hold the model.
    """
    n_gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if n_gpus < 2:
        raise UnavailableError(f"model.spread: this process sees {n_gpus} GPUs, and spreading needs two. Leave it out.")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UnavailableError(
            "model.spread is for one process, which uses all GPUs; torchrun started several. Start the run without it."
        )
    dispatch(model, device_map(model))


def device_map(model: Any, room: dict[int | str, int | str] | None = None) -> dict[str, Any]:
    """The device of every part of a model, as accelerate chooses it: balanced over GPUs, or within `room` bytes of each."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole: list[str] = sorted(getattr(model, "_no_split_modules", None) or ())
    dtype = next(model.parameters()).dtype
    if room is None:
        room = get_balanced_memory(model, no_split_module_classes=whole, dtype=dtype, low_zero=True)
    places = infer_auto_device_map(model, max_memory=room, no_split_module_classes=whole, dtype=dtype)
    outside = [name for name, place in places.items() if place in ("cpu", "disk")]
    if outside:
        raise UnavailableError(
            f"model.spread: the GPUs hold this model up to {outside[0] or 'its beginning'}, and {len(outside)} parts are left. "
            "Use more GPUs, or model.dtype: bfloat16."
        )
    return places


def dispatch(model: Any, places: dict[str, Any]) -> None:
    """Puts every part on its device, with hooks that bring its inputs there."""
    from accelerate import dispatch_model

    dispatch_model(
        model, places, skip_keys=getattr(model, "_skip_keys_device_placement", None), force_hooks=True
    )  # fmt: skip
