"""Explains a feature by the words that its contexts hold more often than random text does."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from math import log, sqrt
from typing import final

from sae.interpret.evidence import Evidence
from sae.interpret.explainers.base import MAX_STRINGS, WORTH, Explainer, Proposal, quoted

WORD = re.compile(r"[^\W\d_]{3,}")
CANDIDATES = 8
PRIOR_WINDOWS = 10.0


def words(text: str) -> set[str]:
    """The different words of a window, lower-cased; words cut at its edge count too."""
    return set(WORD.findall(text.lower()))


def log_odds(positive: Counter[str], n_positive: int, background: Counter[str], n_background: int) -> dict[str, float]:
    """z-score of each word's log-odds of being in a positive window against a background window.

    Log-odds with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008, equations 16 and 22); the prior is
    the background's own rate, worth `PRIOR_WINDOWS` windows.
    """
    scores = {}
    for word, count in positive.items():
        other = background[word]
        prior = PRIOR_WINDOWS * (count + other + 0.5) / (n_positive + n_background + 1)
        rest = PRIOR_WINDOWS - prior
        a = log((count + prior) / (n_positive - count + rest))
        b = log((other + prior) / (n_background - other + rest))
        scores[word] = (a - b) / sqrt(1 / (count + prior) + 1 / (other + prior))
    return scores


def _accuracy(chosen: set[str], positive: list[set[str]], negative: list[set[str]]) -> float:
    if not positive or not negative:
        return float("nan")
    recall = sum(not chosen.isdisjoint(w) for w in positive) / len(positive)
    false = sum(not chosen.isdisjoint(w) for w in negative) / len(negative)
    return (recall + 1 - false) / 2


@final
class Keyphrase(Explainer):
    """Rule: the feature fires strongly exactly in windows that hold one of these words."""

    name = "keyphrase"
    order = 3
    margin = 0.05

    def explain(self, evidence: Evidence, feature: int) -> Proposal | None:
        """Up to three words, scored on strong windows against random silent windows of the test documents."""
        explain, test = (
            [words("".join(evidence.store.text_of(w.token_ids))) for w in part] for part in evidence.windows(feature)
        )
        background = [(is_test, w) for is_test, w, fired in _random_words(evidence) if feature not in fired]
        negative = [w for is_test, w in background if not is_test]
        counted = Counter(word for window in explain for word in window)
        ranked = log_odds(counted, len(explain), Counter(x for w in negative for x in w), len(negative))
        candidates = sorted(ranked, key=lambda w: (-ranked[w], w))[:CANDIDATES]
        chosen: list[str] = []
        best, worth = 0.5, max(WORTH, 1 / max(len(explain), 1))  # a further word must win at least two windows
        while len(chosen) < MAX_STRINGS and candidates:
            word = max(candidates, key=lambda w: (_accuracy({*chosen, w}, explain, negative), w))
            score = _accuracy({*chosen, word}, explain, negative)
            if not score > best + worth:
                break
            best = score
            chosen.append(word)
            candidates.remove(word)
        if not chosen:
            return None
        test_negative = [w for is_test, w in background if is_test]
        return Proposal(
            "about " + quoted(chosen), best, _accuracy(set(chosen), test, test_negative), len(test), len(test_negative)
        )


@lru_cache(maxsize=1)
def _random_words(evidence: Evidence) -> list[tuple[bool, set[str], set[int]]]:
    return [(is_test, words(text), fired) for is_test, text, fired in evidence.random_windows]
