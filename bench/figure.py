"""docs/results.png: the tables of docs/results.md and docs/performance.md that compare saedex with its peers, as a picture.

`python -m bench.figure` draws it again. The numbers are read from the pages, so picture and pages agree.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
COLOURS = {"saedex": "#0b6e75", "dictionary_learning": "#8da2b5", "sparsify": "#b8a07a", "SAELens": "#b58d9b"}


def _first_number(text: str) -> float:
    match = re.search(r"\d+(\.\d+)?", text.replace(",", ""))
    assert match is not None, text
    return float(match[0])


def quality() -> dict[str, dict[str, float]]:
    """fvu by library and k."""
    rows = re.findall(r"^\| (k \d+), (\w+)[^|]*\| \**([\d.]+)", (DOCS / "results.md").read_text(), re.M)
    table: dict[str, dict[str, float]] = {}
    for k, library, fvu in rows:
        table.setdefault(library, {})[k] = float(fvu)
    return table


def step_times(heading: str, column: int) -> dict[str, float]:
    """Milliseconds of one training step by library, in one column of the table below a heading."""
    section = (DOCS / "performance.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    times: dict[str, float] = {}
    for line in re.findall(r"^\| .*", section, re.M):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = cells[0].split(",")[0].split(" ")[0]
        if name in COLOURS and name not in times:
            times[name] = _first_number(cells[column])
    return times


def draw(path: Path) -> None:
    """Three panels: quality at equal k, and the time of one training step on a GPU and on a CPU."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    table = quality()
    width = 0.8 / len(table)
    ks = list(next(iter(table.values())))
    for number, (library, values) in enumerate(table.items()):
        places = [i + (number - 1.5) * width for i in range(len(ks))]
        left.bar(places, [values[k] for k in ks], width, label=library, color=COLOURS[library])
    left.set_xticks(range(len(ks)), ks)
    left.set_title("fvu on held-out rows (lower is better)", fontsize=10)
    left.set_ylim(0, 0.31)  # room for the legend
    left.legend(fontsize=8, frameon=False, ncols=2, loc="upper right")

    for axes, heading, title in (
        (middle, "The step on a GPU", "one training step on an H100, ms"),
        (right, "On a CPU", "one training step on two CPU cores, ms"),
    ):
        times = step_times(heading, 1)
        bars = axes.barh(list(times), list(times.values()), color=[COLOURS[name] for name in times])
        axes.bar_label(bars, [f"{value:g}" for value in times.values()], fontsize=8, padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_title(title, fontsize=10)

    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    draw(DOCS / "results.png")
