"""Pictures of a run: training curves and the density histogram."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

INK, ACCENT = "#334155", "#b4530a"


def curves(lines: list[dict[str, Any]], title: str, path: Path) -> None:
    """fvu, l0 and dead latents against activations trained on."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
    x = [line["tokens_seen"] for line in lines]
    for axis, key, scale in zip(axes, ("fvu", "l0", "dead"), ("log", "linear", "linear"), strict=True):
        axis.plot(x, [line[key] for line in lines], color=ACCENT, linewidth=1.5)
        axis.set(title=key, xlabel="activations trained on", yscale=scale)
        axis.grid(alpha=0.25)
    figure.suptitle(title, color=INK)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def densities(histogram: dict[str, Any], title: str, path: Path) -> None:
    """How many latents fire how often on held-out text."""
    edges = np.array(histogram["log10_edges"])
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    axis.bar(edges[:-1], histogram["latents"], width=np.diff(edges), align="edge", color=ACCENT, edgecolor="white")
    axis.set(title=title, xlabel="log10 of density (share of tokens on which a latent fires)", ylabel="latents")
    figure.savefig(path, dpi=110)
    plt.close(figure)
