"""report.md in the dictionary folder: every figure with its meaning, and the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae.evaluation.measures import MEASURES
from sae.foundation.files import write_bytes

PICTURES = ("curves.png", "density.png", "zf.png")


def _looked_up(metrics: dict[str, Any], key: str) -> Any:
    value: Any = metrics
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def write_report(metrics: dict[str, Any], title: str, folder: Path) -> None:
    """Writes report.md from the metrics and the pictures in the folder."""
    lines = [f"# {title}", "", "All figures are of held-out documents that training never saw.", ""]
    for name, measure in MEASURES.items():
        rows = [(key, _looked_up(metrics, key), text) for key, text in measure.meanings.items()]
        rows = [row for row in rows if row[1] is not None]
        if rows:
            lines += [f"## {name.replace('_', ' ').capitalize()}", "", "| figure | value | meaning |", "|---|---|---|"]
            lines += [f"| {key} | {_shown(value)} | {text.replace('|', chr(92) + '|')} |" for key, value, text in rows]
            lines.append("")

    lines += [f"![{name}]({name})" for name in PICTURES if (folder / name).exists()]
    write_bytes(folder / "report.md", ("\n".join(lines) + "\n").encode())
