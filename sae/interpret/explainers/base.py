"""What an explainer is: evidence of a feature in, a text with a rule that can be tested out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from sae.interpret.evidence import Evidence, TokenCounts

MAX_STRINGS = 3
WORTH = 0.03


class Proposal(NamedTuple):
    """A text and how well its rule does where it was made (explain part) and where it is judged (test part)."""

    text: str
    explain_score: float
    test_score: float
    n_pos: int
    n_neg: int


class Explainer(ABC):
    """Proposes a text for a feature. `margin` is how much better it must do than a simpler kind to be preferred."""

    name: str
    margin: float = 0.0
    order: int = 0

    @abstractmethod
    def explain(self, evidence: Evidence, feature: int) -> Proposal | None:
        """A proposal, or None where this kind of text does not apply. Scores are balanced accuracies (chance 0.5)."""


def best_strings(evidence: Evidence, counts: TokenCounts) -> list[tuple[str, set[int]]]:
    """Up to three texts, each with its token ids, that together predict firing best on the explain part."""
    groups: dict[str, set[int]] = {}
    for token in counts.hits:
        groups.setdefault(evidence.normal(token), set()).add(token)
    chosen: list[tuple[str, set[int]]] = []
    tokens: set[int] = set()
    best = 0.5
    while len(chosen) < MAX_STRINGS and groups:
        text = max(groups, key=lambda g: (counts.balanced_accuracy(tokens | groups[g]), g))
        score = counts.balanced_accuracy(tokens | groups[text])
        if not score > best + WORTH:
            break
        best = score
        tokens = tokens | groups[text]
        chosen.append((text, groups.pop(text)))
    return chosen


def quoted(texts: list[str]) -> str:
    """Texts in quotation marks, joined by commas."""
    return ", ".join(f"\u201c{text}\u201d" for text in texts)


def token_proposal(evidence: Evidence, feature: int, kind: str, prefix: str) -> Proposal | None:
    """A proposal by the tokens under ("current") or after ("next") the feature's firings."""
    explain, test = evidence.counts(feature, kind)
    chosen = best_strings(evidence, explain)
    if not chosen:
        return None
    tokens = set().union(*(ids for _, ids in chosen))
    text = prefix + quoted([text for text, _ in chosen])
    scores = explain.balanced_accuracy(tokens), test.balanced_accuracy(tokens)
    return Proposal(text, *scores, test.n_strong, test.n_tokens - test.n_strong)
