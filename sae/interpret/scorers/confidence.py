"""RecSAE's confidence: does a prediction made from the label alone find held-out activating and silent windows?"""

from __future__ import annotations

from typing import final

from sae.interpret.intervals import balanced_accuracy, proportion
from sae.interpret.level_windows import figures, level_windows, uniform_windows
from sae.interpret.scorer import N_NULL_LABELS, Figure, Matcher, Scorer, ScoringCase, judged_window


@final
class Confidence(Scorer):
    """Recall, true negative rate, precision and confidence of the label's rule on held-out windows.

    Positives: up to 20 test windows drawn uniformly from those whose peak has a global activation level of 5 or more (of
    10). Negatives: random test windows in which the feature is silent. recall = share of positives that the rule
    matches; true_negative_rate = share of negatives that it does not; precision = hits / (hits + false alarms);
    confidence = the mean of the first two, chance 0.5. null_reached is the share of 19 other features' labels that do at
    least as well on the same windows: at 0 the label beats the shuffled null at 95 %. confidence_of_strongest is the
    confidence on the stored windows of those levels instead, most of which are the strongest: as in the paper, and
    flattering.

    Paper: Wang et al., arXiv 2411.06112, sections 4.3 and 4.4 of the released code.
    Differs from the paper: up to 20 windows per class instead of 5; windows drawn uniformly instead of only the
    strongest; confidence weighs both classes equally whatever their numbers; what the code calls precision is called
    true_negative_rate. The predictor here is the label's rule.
    """

    name = "confidence"

    def score(self, case: ScoringCase) -> list[Figure]:
        """The figures and the shuffled null; nothing if no test window is strong enough."""
        positive, negative = uniform_windows(case)
        if case.label is None or not positive or not negative:
            return []

        firing, silent = Matcher(case.evidence, positive), Matcher(case.evidence, negative)
        m, n = len(positive), len(negative)
        windows = tuple(
            judged_window(event, fires, said)
            for fires, part in ((True, firing), (False, silent))
            for event, said in zip(part.events, part.matches(case.label), strict=True)
        )
        hits, false = (sum(w.said for w in windows if w.fires == fires) for fires in (True, False))
        null = [(sum(firing.matches(other)) / m + 1 - sum(silent.matches(other)) / n) / 2 for other in case.others]
        scores = figures(hits, m, false, n, null=null, windows=windows)
        if len(null) == N_NULL_LABELS:
            value = (hits / m + 1 - false / n) / 2
            reached = proportion(sum(other >= value for other in null), N_NULL_LABELS)
            scores.append(Figure("null_reached", reached, 0.5, m, n_neg=n))
        if strongest := level_windows(case)[0]:
            hits = sum(Matcher(case.evidence, strongest).matches(case.label))
            interval = balanced_accuracy(proportion(hits, len(strongest)), proportion(n - false, n))
            scores.append(Figure("confidence_of_strongest", interval, 0.5, len(strongest), n_neg=n))

        return scores
