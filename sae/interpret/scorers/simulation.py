"""Simulation: does a judge who reads only the text predict how strongly the feature fires on each token?"""

from __future__ import annotations

from typing import Any, final

import numpy as np

from sae.interpret.intervals import NOTHING, Interval, grouped_correlation
from sae.interpret.judging.judge import Answer, Prompt
from sae.interpret.judging.judged_scorer import MOST_FAILED, JudgedScorer, Trial, held_out_windows, matches_anywhere
from sae.interpret.judging.prompts import DATA, as_data, schema
from sae.interpret.scorer import Figure, ScoringCase

WINDOWS = 6  # of each kind; a judge reads every token of them, so they are what simulation costs
SYSTEM = (
    "You are given a description of when a neuron fires, and the tokens of a text. Predict for each token, in order, how "
    'strongly it fires, from 0 (not at all) to 10. Answer: {"activations": [one number for each token]}. ' + DATA
)


@final
class Simulation(JudgedScorer):
    """Correlation of predicted and true activations over the tokens of held-out windows.

    As Bills et al. 2023, but one prompt asks for all tokens of a window. Half of the windows are silent. The baseline
    predicts 1 where the feature's model-free label matches. The interval leaves out one window at a time.
    """

    name = "simulation"

    def trials(self, case: ScoringCase, text: str) -> list[Trial]:
        """One window per prompt."""
        positive, negative = held_out_windows(case)
        if len(positive) < 2 or not negative:
            return []

        trials = []
        for event in [*case.drawn(positive, WINDOWS), *case.drawn(negative, WINDOWS)]:
            n = len(event.ids)
            tokens = case.evidence.store.vocabulary.texts(list(event.ids))
            numbers = {"type": "array", "items": {"type": "number"}, "minItems": n, "maxItems": n}
            prompt = Prompt(SYSTEM, as_data(description=text, tokens=tokens), schema(activations=numbers))
            fires = any(event is e for e in positive)
            lexical = [float(bool(matches_anywhere(case, case.label, event, {p}))) for p in range(n)]
            trials.append(Trial(prompt, list(event.acts) if fires else [0.0] * n, lexical))

        return trials

    def score(self, trials: list[Trial], answers: list[Answer]) -> list[Figure]:
        """correlation, chance 0."""
        if not trials:
            return []

        predictions = [_numbers(a.value, len(t.truth)) for t, a in zip(trials, answers, strict=True)]
        failed = sum(s is None for s in predictions)
        counted = [_worst(t.truth) if s is None else s for t, s in zip(trials, predictions, strict=True)]
        correlation = _correlation(trials, counted) if failed <= MOST_FAILED * len(trials) else NOTHING
        baseline = _correlation(trials, [t.baseline for t in trials]).value
        n_pos = sum(sum(a > 0 for a in t.truth) for t in trials)
        n = sum(len(t.truth) for t in trials)

        return [Figure("correlation", correlation, 0.0, n_pos, n_neg=n - n_pos, n_failed=failed, baseline=baseline)]


def _worst(truth: list[float]) -> list[float]:
    """What an unreadable answer counts as: silence if the window fires, full strength if it is silent."""
    return [0.0 if any(truth) else 10.0] * len(truth)


def _numbers(value: Any, n: int) -> list[float] | None:
    numbers = value.get("activations") if isinstance(value, dict) else None
    if not isinstance(numbers, list) or len(numbers) != n:
        return None
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x <= 10 for x in numbers):
        return None
    return [float(x) for x in numbers]


def _correlation(trials: list[Trial], guessed: list[list[float]]) -> Interval:
    pairs = [(np.array(t.truth, float), np.array(g)) for t, g in zip(trials, guessed, strict=True)]
    sums = np.array([[a.sum(), a @ a, p.sum(), p @ p, a @ p] for a, p in pairs])
    return grouped_correlation(sums, np.array([len(a) for a, _ in pairs], float))
