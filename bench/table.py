"""Mean and standard error over seeds of a run's dictionaries: python -m bench.table runs/gradient

Dictionaries whose names differ only in a last `-s0`, `-s1`, ... are seeds of one row.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

FIGURES = (
    "l0", "fvu", "normalised_mse", "ce_increase", "loss_recovered.mean", "dead", "with_gradient.fvu",
    "with_gradient_ce_increase", "epsilon_lbo.times_width", "norm_ratio", "steering.log_odds_gain",
    "steering.random_log_odds_gain",
)  # fmt: skip


def _value(metrics: dict[str, Any], key: str) -> float | None:
    value: Any = metrics
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def main(run: Path) -> None:
    """Prints a Markdown table."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(run.glob("dictionaries/*/metrics.json")):
        rows[re.sub(r"-s\d+$", "", path.parent.name)].append(json.loads(path.read_text()))
    shown = [key for key in FIGURES if any(_value(m, key) is not None for seeds in rows.values() for m in seeds)]
    print("| | seeds | " + " | ".join(shown) + " |\n|" + "---|" * (len(shown) + 2))
    for name, seeds in rows.items():
        cells = []
        for key in shown:
            values = [v for m in seeds if (v := _value(m, key)) is not None]
            error = f" +- {statistics.stdev(values) / len(values) ** 0.5:.4f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4f}{error}" if values else "")
        print(f"| {name} | {len(seeds)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
