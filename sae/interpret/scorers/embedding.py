"""Does a small sentence encoder find the windows in which a feature fires, from its label's words alone?"""

from __future__ import annotations

from typing import final

import numpy as np

from sae.interpret.encoder import sentence_encoder
from sae.interpret.events import Event
from sae.interpret.intervals import auc, best_threshold
from sae.interpret.judging.judged_scorer import held_out_windows, matches_anywhere
from sae.interpret.level_windows import figures, level_windows, uniform_windows
from sae.interpret.scorer import Figure, Scorer, ScoringCase


@final
class Embedding(Scorer):
    """AUC of the cosine between label and window, and RecSAE's confidence with that cosine as the predictor.

    auc: the windows of detection, activating ones of all strata against hard and random silent ones; the baseline is
    the label's rule, matched anywhere in the window. recall, true_negative_rate, confidence, precision: the windows of
    `confidence`; a cosine over the threshold that is best on the explain windows means active; the baseline is the
    mean over other features' labels, each with its own threshold.

    Paper: Paulo et al. 2024, arXiv 2410.13928, section 4 (embedding scoring). Differs from it: no instruction is put
    before the texts, as the encoder was not trained with one.
    """

    name = "embedding"
    by_default = False

    def score(self, case: ScoringCase) -> list[Figure]:
        """auc and the figures of RecSAE; each if both classes have windows."""
        label = case.label
        if label is None:
            return []

        scores = []
        positive, negative = held_out_windows(case)
        if positive and negative:
            cosines = [_cosines(case, label.text, part) for part in (positive, negative)]
            matches = [
                np.array([float(bool(matches_anywhere(case, label, e))) for e in p]) for p in (positive, negative)
            ]
            lexical = auc(*matches).value
            scores.append(Figure("auc", auc(*cosines), 0.5, len(positive), n_neg=len(negative), baseline=lexical))

        return scores + self._confidence(case, label.text)

    def _confidence(self, case: ScoringCase, text: str) -> list[Figure]:
        chosen_on, tested_on = level_windows(case, False), uniform_windows(case)
        if not all(map(len, (*chosen_on, *tested_on))):
            return []

        def rates(label: str) -> tuple[int, int]:
            bound = best_threshold(*(_cosines(case, label, part) for part in chosen_on))
            hits, false = (int((_cosines(case, label, part) > bound).sum()) for part in tested_on)
            return hits, false

        m, n = map(len, tested_on)
        hits, false = rates(text)
        null = [(a / m + 1 - b / n) / 2 for a, b in (rates(other.text) for other in case.others)]

        return figures(hits, m, false, n, null=null)


def _cosines(case: ScoringCase, text: str, events: list[Event]) -> np.ndarray:
    vectors = sentence_encoder().encode([text, *(case.evidence.events.text(e) for e in events)])
    return vectors[1:] @ vectors[0]
