"""How well the code reconstructs held-out activations, and how many latents it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.evaluation.measure import Measure
from sae.evaluation.seen_text import PHRASE, seen_before
from sae.evaluation.subject import Subject
from sae.foundation.metrics import FvuMeter, density, normalised_mse
from sae.stream.activations import TYPICAL_NORM_MULTIPLE

QUANTILES = (0, 5, 25, 50, 75, 95, 100)


class _Totals:
    """Running sums over held-out rows."""

    def __init__(self, subject: Subject):
        sae = subject.sae
        self.all_rows, self.typical, self.new = (FvuMeter(sae.d_out, subject.device) for _ in range(3))
        self.fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=subject.device)
        self.sums = torch.zeros(5, dtype=torch.float64, device=subject.device)
        self.counts: list[Tensor] = []

    def add(
        self,
        y: Float[Tensor, "rows d_out"],
        y_hat: Float[Tensor, "rows d_out"],
        acts: Float[Tensor, "rows width"],
        indices: Int[Tensor, "rows width"],
        *,
        inside: Bool[Tensor, " rows"],
        new: Bool[Tensor, " rows"],
    ) -> None:
        """Adds rows, their reconstruction and their code; `inside` marks the typical ones, `new` those on new text."""
        self.all_rows.add(y, y_hat)
        self.typical.add(y[inside], y_hat[inside])
        self.new.add(y[new], y_hat[new])
        self.fired += torch.bincount(indices[acts > 0], minlength=len(self.fired))
        self.counts.append((acts > 0).sum(1).cpu())
        ratio = y_hat.norm(dim=1) / y.norm(dim=1).clamp_min(1e-30)
        parts = (
            F.cosine_similarity(y, y_hat),
            ratio,
            normalised_mse(y, y_hat),
            y_hat.square().sum(1),
            (y * y_hat).sum(1),
        )
        self.sums += torch.stack([part.double().sum() for part in parts])


class Reconstruction(Measure):
    """fvu, normalised MSE, cosine, l2 ratio, relative bias, l0 and densities; with and without gradients if it can."""

    by_default, order = True, 0
    control_figures = ("fvu", "fvu_typical", "fvu_new", "l0")
    meanings: ClassVar[dict[str, str]] = {
        "fvu": "fraction of variance unexplained: sum ||x - x_hat||^2 / sum ||x - mean x||^2",
        "fvu_typical": f"the same over positions whose norm is at most {TYPICAL_NORM_MULTIPLE:g} medians",
        "fvu_new": f"the same over positions whose last {PHRASE} tokens do not occur in the training text",
        "seen_in_training": f"share of positions whose last {PHRASE} tokens do",
        "normalised_mse": "mean over tokens of ||x - x_hat||^2 / ||x||^2",
        "cosine": "mean cosine of x and x_hat",
        "l2_ratio": "mean ||x_hat|| / ||x||",
        "relative_bias": "E ||x_hat||^2 / E <x, x_hat>: below 1 it shrinks",
        "l0": "mean number of latents that fire on a token",
        "silent_on_held_out": "latents that fire on no held-out token",
        "with_gradient.fvu": "fvu if latents are selected by the gradient, as in training",
    }

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, Any]:
        """See `meanings`."""
        figures = self._over(subject, False)
        if subject.sae.config.gradient is not None:
            selected = self._over(subject, True)
            figures["with_gradient"] = {key: selected[key] for key in ("fvu", "fvu_typical", "l0")}
        return figures

    def _over(self, subject: Subject, with_gradient: bool) -> dict[str, Any]:
        sae, totals = subject.sae, _Totals(subject)
        limit = TYPICAL_NORM_MULTIPLE * subject.held_out.statistics(sae.config.hook).median_norm
        first_width = len(subject.held_out.statistics(sae.config.hook).centre)

        seen = seen_before(subject.held_out)
        for batch, positions in subject.placed_batches():
            encoding = sae.encode(batch.x, batch.gradient if with_gradient else None)
            inside = batch.x[:, :first_width].norm(dim=1) <= limit
            new = torch.from_numpy(~seen[positions]).to(inside.device)
            x_hat = sae.decode(encoding, batch.x)
            totals.add(batch.y, x_hat, encoding.top_acts, encoding.top_indices, inside=inside, new=new)

        n = totals.all_rows.rows
        counts = torch.cat(totals.counts).double()
        cosine, ratio, nmse = (totals.sums[:3] / n).tolist()
        densities = density(totals.fired, n)
        edges = np.arange(-7, 0.5, 0.25)
        logs = densities[densities > 0].log10().cpu().numpy()

        return {
            "rows": n,
            "fvu": totals.all_rows.value(),
            "fvu_typical": totals.typical.value(),
            "typical_rows": totals.typical.rows,
            "fvu_new": totals.new.value() if totals.new.rows > 1 else None,
            "seen_in_training": 1 - totals.new.rows / n,
            "normalised_mse": nmse,
            "cosine": cosine,
            "l2_ratio": ratio,
            "relative_bias": float(totals.sums[3] / totals.sums[4]),
            "l0": float(counts.mean()),
            "l0_percentiles": {str(q): float(np.percentile(counts.numpy(), q)) for q in QUANTILES},
            "silent_on_held_out": int((totals.fired == 0).sum()),
            "density_histogram": {"log10_edges": edges.tolist(), "latents": np.histogram(logs, edges)[0].tolist()},
        }

    def draw(self, figures: dict[str, Any], title: str, folder: Path) -> None:
        """density.png."""
        from sae.evaluation import plots

        plots.densities(figures["density_histogram"], title, folder / "density.png")
