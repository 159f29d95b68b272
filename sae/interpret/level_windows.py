"""Windows by global activation level, and the figures that RecSAE's confidence consists of, for any predictor."""

from __future__ import annotations

from math import nan

from feature_store.records import JudgedWindow
from sae.interpret.events import Event, level_of
from sae.interpret.intervals import balanced_accuracy, proportion
from sae.interpret.scorer import Figure, ScoringCase

ACTIVE_LEVEL = 5
MOST = 20


def uniform_windows(case: ScoringCase) -> tuple[list[Event], list[Event]]:
    """(test windows drawn uniformly from those whose peak has a global level of 5 or more, random silent ones)."""
    events = case.evidence.events
    silent = case.drawn(case.part(events.random_silent(case.feature), True), MOST)
    return events.uniform(case.feature)[:MOST], silent


def level_windows(case: ScoringCase, test: bool = True) -> tuple[list[Event], list[Event]]:
    """(windows of one part whose peak has a global level of 5 or more, random silent ones), at most 20 each.

    They are drawn from the stored windows: the strongest contexts, and as many of every stratum.
    """
    events = case.evidence.events
    strong = [e for e in events.activating(case.feature) if level_of(e.act, case.levels) >= ACTIVE_LEVEL]
    positive = case.drawn(case.part(strong, test), MOST)
    return positive, case.drawn(case.part(events.random_silent(case.feature), test), MOST)


def figures(
    hits: int,
    m: int,
    false: int,
    n: int,
    *,
    null: list[float],
    failed: int = 0,
    windows: tuple[JudgedWindow, ...] = (),
) -> list[Figure]:
    """Recall, true negative rate, confidence and precision of `hits` of m positives and `false` of n negatives."""
    recall, silent = proportion(hits, m), proportion(n - false, n)
    baseline = sum(null) / len(null) if null else nan
    rates = [
        Figure("recall", recall, 0.5, m, n_neg=n, n_failed=failed),
        Figure("true_negative_rate", silent, 0.5, m, n_neg=n, n_failed=failed),
        Figure(
            "confidence",
            balanced_accuracy(recall, silent),
            0.5,
            m,
            n_neg=n,
            n_failed=failed,
            baseline=baseline,
            windows=windows,
        ),
    ]
    if hits + false:
        rates.append(Figure("precision", proportion(hits, hits + false), m / (m + n), m, n_neg=n, n_failed=failed))

    return rates
