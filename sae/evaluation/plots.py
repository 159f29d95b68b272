"""Pictures of a run: training curves, the density histogram, the norms of inputs and codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from sae.foundation.files import writing

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
    _save(figure, path)


def densities(histogram: dict[str, Any], title: str, path: Path) -> None:
    """How many latents fire how often on held-out text."""
    edges = np.array(histogram["log10_edges"])
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    axis.bar(edges[:-1], histogram["latents"], width=np.diff(edges), align="edge", color=ACCENT, edgecolor="white")
    axis.set(title=title, xlabel="log10 of density (share of tokens on which a latent fires)", ylabel="latents")
    _save(figure, path)


def norms(rows: list[tuple[float, float]], title: str, path: Path) -> None:
    """The ZF plot: ||x|| against the norm of the code, with the bands in which epsilon (d_sae - 1) is at most b."""
    x, f = np.array(rows).T
    low, high = 0.9 * min(x.min(), f.min()), 1.1 * max(np.quantile(x, 0.99), np.quantile(f, 0.99))
    line = np.array([low, high])
    figure, axis = plt.subplots(figsize=(5, 5), layout="constrained")
    for b in (1.0, 0.5, 0.25):
        upper = line / np.sqrt(1 - b) if b < 1 else np.full(2, high * 10)
        axis.fill_between(line, line / np.sqrt(1 + b), upper, color=INK, alpha=0.08, linewidth=0)

    axis.plot(line, line, color=INK, linestyle="--", linewidth=1)
    axis.scatter(x, f, s=6, color=ACCENT, alpha=0.5, linewidth=0)
    axis.set(xlim=line, ylim=line, aspect="equal", xlabel="norm of the activation", ylabel="norm of the code")
    axis.set_title(f"{title}\nshaded: epsilon (d_sae - 1) up to 0.25, 0.5, 1", fontsize=9)
    _save(figure, path)


def lines_through_first(
    x: list[float], x_title: str, left: dict[str, list[float]], right: dict[str, list[float]], *, path: Path
) -> None:
    """Two panels of measurements against x; a dotted line shows a cost proportional to x."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for panel, series in zip(panels, (left, right), strict=True):
        for (name, values), color in zip(series.items(), (ACCENT, INK), strict=False):
            panel.plot(x, values, "o-", label=name, color=color)
            panel.plot([0, x[-1]], [0, values[0] * x[-1] / x[0]], ":", color=color, linewidth=1)
        panel.set(xlabel=x_title, xlim=(0, None), ylim=(0, None))
        panel.legend(frameon=False)

    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with writing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
