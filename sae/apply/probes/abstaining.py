"""A probe that names a class only where it has reason to: logistic regression, and conformal sets of classes.

The probe is fit on one part of the texts. On a second part, for every class y, the score 1 - p(y | x) of its own texts gives a bound:
the ceil((n + 1)(1 - alpha))-th smallest of n. A new text may be of every class whose score is within its bound; a text of class y
is then missed with a probability of at most alpha, whatever the probe is worth (Vovk 2012, arXiv 1209.2673; by class). One class is
an answer; none or several is abstention. So Savcisens and Eliassi-Rad 2025, arXiv 2506.23921, tell true from false and neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sae.errors import DataError
from sae.interpret.intervals import Interval, auc, proportion

FIT, CALIBRATE = 0.5, 0.25  # shares of the groups; the rest are tested on
FEWEST = 5  # texts of every class in every part


class Parts(NamedTuple):
    """Numbers of the texts that a probe is fit on, whose bounds are set on, and that it is tested on."""

    fit: Int[np.ndarray, " fit"]
    calibrate: Int[np.ndarray, " calibrate"]
    test: Int[np.ndarray, " test"]


def parts_of(labels: Sequence[str], groups: Sequence[str], seed: int) -> Parts:
    """Texts of one group in one part; raises `DataError` if a class has too few texts in one."""
    names = sorted(set(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    place_of = {names[number]: place for place, number in enumerate(order)}
    share = np.array([place_of[group] / len(names) for group in groups])
    parts = Parts(
        np.flatnonzero(share < FIT),
        np.flatnonzero((share >= FIT) & (share < FIT + CALIBRATE)),
        np.flatnonzero(share >= FIT + CALIBRATE),
    )
    for name, part in parts._asdict().items():
        for label in sorted(set(labels)):
            n = sum(labels[number] == label for number in part)
            if n < FEWEST:
                raise DataError(
                    f"class {label!r} has {n} texts in the part to {name}; wanted are {FEWEST} in each of three. Give more texts, or "
                    "fewer in a group."
                )
    return parts


def bounds_of(
    probabilities: Float[np.ndarray, "texts classes"], labels: Int[np.ndarray, " texts"], alpha: float
) -> Float[np.ndarray, " classes"]:
    """The largest score 1 - p at which each class is still possible; 1 where there are too few texts for less."""
    bounds = np.ones(probabilities.shape[1])
    for label in range(len(bounds)):
        scores = np.sort(1 - probabilities[labels == label, label])
        place = int(np.ceil((len(scores) + 1) * (1 - alpha)))
        if place <= len(scores):
            bounds[label] = scores[place - 1]
    return bounds


class ProbeResult(NamedTuple):
    """How a probe does on the texts held out.

    accuracy: the likeliest class is right. answered: one class is possible. right_of_answered: it is the right one. covered:
    the right class is among the possible ones, which alpha promises. auc: each class against the others, their mean.
    `answers` [test] are numbers of classes, -1 for abstention; `possible` [test, classes].
    """

    accuracy: Interval
    answered: Interval
    right_of_answered: Interval
    covered: Interval
    auc: float
    answers: Int[np.ndarray, " test"]
    possible: Bool[np.ndarray, "test classes"]
    model: Any


def probed(
    x: Any, labels: Int[np.ndarray, " texts"], parts: Parts, *, alpha: float, n_distinct: int | None = None
) -> ProbeResult:
    """Fits, sets bounds, and tests a probe on the rows of x (dense or sparse).

    Intervals count `n_distinct` independent trials of the test part, if texts of a group are alike; none: all of them.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(with_mean=isinstance(x, np.ndarray)), LogisticRegression(max_iter=2000))
    model.fit(x[parts.fit], labels[parts.fit])
    bounds = bounds_of(model.predict_proba(x[parts.calibrate]), labels[parts.calibrate], alpha)
    p, true = model.predict_proba(x[parts.test]), labels[parts.test]

    possible = 1 - p <= bounds
    answers = np.where(possible.sum(1) == 1, possible.argmax(1), -1)
    is_answer, is_right = answers >= 0, answers == true
    weight = (n_distinct or len(true)) / len(true)  # independent trials for one text
    by_class = [auc(p[true == label, label], p[true != label, label]).value for label in range(p.shape[1])]

    def share(hits: np.ndarray, of: np.ndarray) -> Interval:
        return proportion(float(hits.sum()) * weight, float(of.sum()) * weight)

    return ProbeResult(
        share(p.argmax(1) == true, np.ones_like(true)),
        share(is_answer, np.ones_like(true)),
        share(is_right, is_answer),
        share(possible[np.arange(len(true)), true], np.ones_like(true)),
        auc=float(np.mean(by_class)), answers=answers, possible=possible, model=model,
    )  # fmt: skip


def telling_columns(
    x: Float[np.ndarray, "texts columns"], labels: Int[np.ndarray, " texts"], k: int
) -> Int[np.ndarray, " chosen"]:
    """The k columns whose mean in one class differs most from that in the others, in units of their mean when they fire."""
    fires = x > 0
    scale = x.sum(0) / np.maximum(fires.sum(0), 1)
    gaps = [np.abs(x[labels == label].mean(0) - x[labels != label].mean(0)) for label in np.unique(labels)]
    difference = np.max(gaps, axis=0) / np.maximum(scale, 1e-12)
    return np.argsort(-difference, kind="stable")[:k]
