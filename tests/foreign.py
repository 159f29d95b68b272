"""What tests of foreign files share: random numbers in a peer's module, our reading of its files, and the comparison."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from sae.interop.transfer import import_dictionary


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Other numbers in every floating tensor; thresholds on both sides of zero; decoder rows of any norm."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.4)


def read(path: Path, form: str, **hooks: Any) -> Any:
    """Our dictionary of a peer's file."""
    target = path.parent / f"{path.name}-ours"
    shutil.rmtree(target, ignore_errors=True)
    return import_dictionary(path, form, target, hooks.get("hook", "resid_post.0"), writes=hooks.get("writes"))


def check_equal(theirs_acts: torch.Tensor, theirs_x_hat: torch.Tensor, ours: Any, x: torch.Tensor) -> None:
    """Codes and reconstructions equal within 1e-5 of the largest number."""
    code = ours.encode(x)
    acts = torch.zeros(len(x), ours.d_sae).scatter_add(1, code.top_indices, code.top_acts)
    for theirs, mine in ((theirs_acts, acts), (theirs_x_hat, ours.decode(code, x))):
        assert (theirs - mine).abs().max() <= 1e-5 * theirs.abs().max().clamp_min(1e-30)
