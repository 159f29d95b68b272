"""RecSAE's confidence with a judge as the predictor, and a shuffled description as its baseline."""

from __future__ import annotations

from typing import Any, final

from sae.interpret.intervals import NOTHING
from sae.interpret.judging.judge import Answer, Prompt
from sae.interpret.judging.judged_scorer import MOST_FAILED, JudgedScorer, Trial, shuffled
from sae.interpret.judging.prompts import CLOSE, DATA, OPEN, as_data, schema, shown
from sae.interpret.level_windows import figures, uniform_windows
from sae.interpret.scorer import Figure, ScoringCase

THRESHOLD = 5
SYSTEM = (
    f"You are given a description of when a neuron fires, and some texts with one token marked between {OPEN} and "
    f"{CLOSE}. Predict for each text, in order, how strongly the neuron fires on the marked token, from 0 (not at all) "
    'to 10. Answer: {"levels": [one whole number for each text]}. ' + DATA
)


@final
class JudgedConfidence(JudgedScorer):
    """Recall, true negative rate, precision and confidence of levels that a judge predicts; above 5 means active.

    The windows are those of the model-free `confidence`. The baseline is the confidence of another feature's label on
    the same windows, by the same judge. An unreadable answer is wrong in both classes.
    """

    name = "judged_confidence"
    by_default = True

    def trials(self, case: ScoringCase, text: str) -> list[Trial]:
        """The description's prompts, then those of another feature's label; texts in random order."""
        positive, negative = uniform_windows(case)
        if not positive or not negative:
            return []

        items = [(e, True) for e in positive] + [(e, False) for e in negative]
        trials = []

        for asked, description in enumerate([text, *(other.text for other in case.others[:1])]):
            for part in shuffled(case, items):
                data = as_data(description=description, texts=[shown(case.evidence, e, {e.peak}) for e, _ in part])
                numbers = {"type": "integer", "minimum": 0, "maximum": 10}
                size = {"minItems": len(part), "maxItems": len(part)}
                prompt = Prompt(SYSTEM, data, schema(levels={"type": "array", "items": numbers, **size}))
                trials.append(Trial(prompt, [truth for _, truth in part], [asked] * len(part)))

        return trials

    def score(self, trials: list[Trial], answers: list[Answer]) -> list[Figure]:
        """recall, true_negative_rate, confidence, precision; nothing if more than a tenth failed."""
        counted = {
            0: [0, 0, 0, 0, 0],
            1: [0, 0, 0, 0, 0],
        }  # own and shuffled: hits, positives, false, negatives, failed
        for trial, answer in zip(trials, answers, strict=True):
            levels = _levels(answer.value, len(trial.truth))
            sums = counted[trial.baseline[0]]
            for place, truth in enumerate(trial.truth):
                active = levels is not None and levels[place] > THRESHOLD
                is_unreadable = levels is None
                sums[0] += truth and active
                sums[1] += truth
                sums[2] += not truth and (active or is_unreadable)
                sums[3] += not truth
                sums[4] += is_unreadable

        hits, m, false, n, failed = counted[0]
        if not trials or failed > MOST_FAILED * (m + n):
            return [Figure("confidence", NOTHING, 0.5, m, n_neg=n, n_failed=failed)] if trials else []

        other = counted[1]
        usable = other[1] and other[3] and other[4] <= MOST_FAILED * (other[1] + other[3])
        null = [(other[0] / other[1] + 1 - other[2] / other[3]) / 2] if usable else []

        return figures(hits, m, false, n, null=null, failed=failed)


def _levels(value: Any, n: int) -> list[int] | None:
    levels = value.get("levels") if isinstance(value, dict) else None
    if not isinstance(levels, list) or len(levels) != n:
        return None
    are_levels = all(isinstance(x, int) and not isinstance(x, bool) and 0 <= x <= 10 for x in levels)
    return levels if are_levels else None
