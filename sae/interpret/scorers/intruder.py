"""Intruder: does a judge find the one window in which the feature does not fire? It needs no explanation."""

from __future__ import annotations

from typing import final

from sae.interpret.intervals import NOTHING, proportion
from sae.interpret.judging.judge import Answer, Prompt
from sae.interpret.judging.judged_scorer import MOST_FAILED, JudgedScorer, Trial, copied_marks, held_out_windows
from sae.interpret.judging.prompts import CLOSE, DATA, OPEN, as_data, firing_places, schema, shown
from sae.interpret.scorer import Figure, ScoringCase

TEXTS, TRIALS = 5, 10
SYSTEM = (
    f"You are given {TEXTS} texts with tokens marked between {OPEN} and {CLOSE}. All but one have something in common. "
    f'Answer: {{"odd": number of the text that has not, 1 to {TEXTS}}}. ' + DATA
)


@final
class Intruder(JudgedScorer):
    """Accuracy of finding one silent window among four activating ones, chance 0.2; about the feature, not its label."""

    name = "intruder"
    about_label = False

    def trials(self, case: ScoringCase, text: str) -> list[Trial]:
        """Ten draws of four activating windows and a silent one, marked at places copied from an activating one."""
        positive, negative = held_out_windows(case)
        if len(positive) < TEXTS or not negative:
            return []

        generator, trials = case.generator(), []
        answer = schema(odd={"type": "integer", "minimum": 1, "maximum": TEXTS})

        for number in range(TRIALS):
            drawn = [positive[i] for i in generator.permutation(len(positive))[:TEXTS].tolist()]
            intruder, pattern = negative[number % len(negative)], firing_places(drawn.pop())
            place = int(generator.integers(TEXTS))
            marks = copied_marks(pattern, intruder)
            texts = [shown(case.evidence, e, firing_places(e)) for e in drawn]
            texts.insert(place, shown(case.evidence, intruder, marks))
            trials.append(Trial(Prompt(SYSTEM, as_data(texts=texts), answer), [place + 1], [None]))

        return trials

    def score(self, trials: list[Trial], answers: list[Answer]) -> list[Figure]:
        """accuracy, chance 0.2."""
        if not trials:
            return []
        guessed_numbers = [a.value.get("odd") if isinstance(a.value, dict) else None for a in answers]
        failed = sum(not isinstance(odd, int) or not 1 <= odd <= TEXTS for odd in guessed_numbers)
        hits = sum(odd == trial.truth[0] for odd, trial in zip(guessed_numbers, trials, strict=True))
        n = len(trials)
        value = NOTHING if failed > MOST_FAILED * n else proportion(hits, n)
        return [Figure("accuracy", value, 1 / TEXTS, n * (TEXTS - 1), n_neg=n, n_failed=failed)]
