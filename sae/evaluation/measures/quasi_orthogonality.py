"""How far decoder rows must be from orthogonal to explain the norm of the code, and the picture of both norms."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae.evaluation.measure import Measure
from sae.evaluation.subject import Subject
from sae.foundation.files import writing

ROWS = 4096
PLOTTED = 1000


def epsilon_lbo(
    x: Float[Tensor, "tokens d"],
    acts: Float[Tensor, "tokens k"],
    row_norms: Float[Tensor, "tokens k"],
    bias: Float[Tensor, " d"],
    *,
    d_sae: int,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """(epsilon_LBO, norm of the code) of every token, [tokens] each.

    epsilon_LBO = | ||x||^2 - ||f||^2 | / ((d_sae - 1) ||f||^2), f the activations times the norms of their decoder
    rows, with ||b_dec|| as one more coordinate: the smallest epsilon for which the pair of norms is possible when all
    decoder rows have inner products within epsilon (Lee et al. 2025, arXiv 2503.24277, sections 3 and 4).
    """
    square = (acts * row_norms).square().sum(1) + bias.square().sum()
    x_square = x.square().sum(1)
    return (x_square - square).abs() / ((d_sae - 1) * square).clamp_min(1e-30), square.sqrt()


class QuasiOrthogonality(Measure):
    """epsilon_LBO over held-out tokens, and the ZF plot: ||x|| against the norm of the code."""

    by_default, order = True, 3
    meanings: ClassVar[dict[str, str]] = {
        "epsilon_lbo.median": "smallest departure from orthogonality that explains the code's norm, median over tokens",
        "epsilon_lbo.times_width": "the same times (d_sae - 1): 1 is as far as the theorem reaches",
        "norm_ratio": "median of the code's norm (bias included) over ||x||; below 1 latents fire too weakly",
        "under_activated": "share of tokens whose code is shorter than x",
    }

    def applies(self, subject: Subject) -> bool:
        """for dictionaries that reconstruct what they read, without token_norm: the theorem is about those"""
        return subject.sae.centred and not subject.sae.config.token_norm

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, Any]:
        """See `meanings`."""
        sae = subject.sae
        row_norms = sae.W_dec.norm(dim=1).to(subject.device)
        parts = []

        for batch in subject.batches(ROWS):
            code = sae.encode(batch.x)
            norms = row_norms[code.top_indices]
            epsilon, f = epsilon_lbo(batch.x, code.top_acts, norms, sae.b_dec, d_sae=sae.d_sae)
            parts.append(torch.stack([epsilon, f, batch.x.norm(dim=1)]).cpu())

        epsilon, f, x = torch.cat(parts, dim=1)
        step = max(1, len(x) // PLOTTED)

        with writing(subject.folder / "zf.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [("x_norm", "code_norm"), *zip(x[::step].tolist(), f[::step].tolist(), strict=True)]
            )

        median = float(epsilon.median())

        return {
            "epsilon_lbo": {"median": median, "mean": float(epsilon.mean()), "times_width": median * (sae.d_sae - 1)},
            "norm_ratio": float((f / x).median()),
            "under_activated": float((f < x).double().mean()),
        }

    def draw(self, figures: dict[str, Any], title: str, folder: Path) -> None:
        """zf.png, from zf.csv."""
        from sae.evaluation import plots

        with (folder / "zf.csv").open() as file:
            rows = [(float(a), float(b)) for a, b in list(csv.reader(file))[1:]]
        plots.norms(rows, title, folder / "zf.png")
