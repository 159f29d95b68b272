"""Figures of labels, and the same of controls, whose labels say what a figure is worth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from feature_store.dictionary_files import LabelFigures
from sae.interpret.explainers import EXPLAINERS
from sae.interpret.explanation_table import ExplanationTable

FLOOR_SHARE = 0.95  # of a control's labels that do not exceed the floor


class ControlLabels(NamedTuple):
    """Figures of a control's labels, and the F2 that 95 % of them do not exceed."""

    figures: LabelFigures
    floor: float | None


def control_labels(table: ExplanationTable, n_alive: int) -> ControlLabels:
    """What a control's labels say."""
    scores = _of_labels(table, "rule", "f2")
    floor = float(np.quantile(scores, FLOOR_SHARE, method="higher")) if scores else None
    return ControlLabels(label_figures(table, n_alive, None), floor)


def label_figures(table: ExplanationTable, n_alive: int, floor: float | None) -> LabelFigures:
    """Figures of the chosen labels of a table; `floor` is that of random directions, if they were labelled."""
    labels = list(table.labels.values())
    explainers = [row.explainer for row in labels]
    scores, f2 = _label_scores(table), _of_labels(table, "rule", "f2")
    null_shares = _of_labels(table, "confidence", "null_reached")

    return LabelFigures(
        features_alive=n_alive,
        features_labelled=len(labels),
        labels_by_explainer={name: explainers.count(name) for name in dict.fromkeys((*EXPLAINERS, *explainers))},
        median_balanced_accuracy=_median(scores),
        median_f2=_median(f2),
        median_precision=_median(_of_labels(table, "rule", "precision")),
        median_confidence=_median(_of_labels(table, "confidence", "confidence")),
        share_beating_chance=_share([low > 0.5 for low in _of_labels(table, "rule", "balanced_accuracy", "low")]),
        features_tested_against_null=len(null_shares),
        share_beating_null=_share([share == 0 for share in null_shares]),
        share_beating_control=None if floor is None else _share([score > floor for score in f2]),
    )


def _label_scores(table: ExplanationTable) -> list[float]:
    return sorted(row.score for row in table.labels.values() if row.score is not None)


def _of_labels(table: ExplanationTable, scorer: str, metric: str, field: str = "value") -> list[float]:
    """Values of one metric of the chosen labels."""
    chosen = {row.id for row in table.explanations if row.chosen}
    rows = (row for row in table.scores if row.explanation in chosen)
    values = (getattr(row.score, field) for row in rows if (row.score.scorer, row.score.metric) == (scorer, metric))
    return [value for value in values if value is not None]


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None


def _share(hits: list[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None
