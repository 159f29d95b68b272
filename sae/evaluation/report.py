"""report.md in the dictionary folder: every figure with its meaning, and the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae.evaluation.measures import MEASURES
from sae.foundation.files import write_bytes
from sae.publish.controls import CONTROLS, MEANINGS

TEXT_FIGURES = ("fvu", "fvu_typical", "fvu_new", "l0", "ce_increase", "loss_recovered.mean")
PICTURES = ("curves.png", "density.png", "zf.png")


def _looked_up(metrics: dict[str, Any], key: str) -> Any:
    value: Any = metrics
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def write_report(metrics: dict[str, Any], title: str, folder: Path) -> None:
    """Writes report.md from the metrics and the pictures in the folder; figures of controls stand beside the others."""
    controls = metrics.get("controls") or {}
    text = metrics.get("text") or "held-out documents that training never saw"
    lines = [f"# {title}", "", f"All figures are of {text}.", ""]
    for name, measure in MEASURES.items():
        rows = [(key, _looked_up(metrics, key), meaning) for key, meaning in measure.meanings.items()]
        rows = [row for row in rows if row[1] is not None]
        if not rows:
            continue
        beside = list(controls) if measure.control_figures else []
        lines += [f"## {name.replace('_', ' ').capitalize()}", ""]
        lines += ["| figure | value | " + "".join(f"{control} | " for control in beside) + "meaning |"]
        lines += ["|---" * (3 + len(beside)) + "|"]
        for key, value, meaning in rows:
            beside_it = [_looked_up(controls[control], key) for control in beside]
            values = [_shown(value), *("" if v is None else _shown(v) for v in beside_it)]
            lines.append(f"| {key} | {' | '.join(values)} | {meaning.replace('|', chr(92) + '|')} |")
        lines.append("")

    lines += _other_texts(metrics)
    lines += [f"{name.capitalize()}: {MEANINGS[name]}, on the same text.\n" for name in CONTROLS if name in controls]
    lines += [f"![{name}]({name})" for name in PICTURES if (folder / name).exists()]
    write_bytes(folder / "report.md", ("\n".join(lines) + "\n").encode())


def _other_texts(metrics: dict[str, Any]) -> list[str]:
    """A table of the main figures on this text and on others."""
    texts: dict[str, dict[str, Any]] = metrics.get("texts") or {}
    if not texts:
        return []
    keys = [key for key in TEXT_FIGURES if _looked_up(metrics, key) is not None]
    rows = {"its own, held out": metrics, **texts}
    lines = ["## On other texts", "", f"| text | {' | '.join(keys)} |", "|---" * (1 + len(keys)) + "|"]
    for name, figures in rows.items():
        values = [_looked_up(figures, key) for key in keys]
        lines.append(f"| {name} | {' | '.join('' if v is None else _shown(v) for v in values)} |")
    return [*lines, ""]
