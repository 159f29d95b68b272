"""What an explainer is: from a feature's evidence to a text with a rule that can be tested."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable
from typing import ClassVar, NamedTuple

import numpy as np

from sae.interpret.events import Event
from sae.interpret.evidence import Counts, Evidence, Strong

MAX_STRINGS = 3  # that a label may name
WORTH = 0.05  # share by which a further string must raise F2 to be taken


class Proposal(NamedTuple):
    """A text; its rule, a set of items (an event must have one); the rule's counts on the explain part and on the test
    part.
    """

    text: str
    rule: frozenset[Hashable]
    explain: Counts
    test: Counts


class Explainer(ABC):
    """Proposes a text for a feature."""

    name: ClassVar[str]
    margin: ClassVar[float] = 0.0  # share of its F2 that it loses against a simpler kind
    order: ClassVar[int] = 0  # simpler kinds first
    is_baseline: ClassVar[bool] = False  # whether the rule's score is the baseline of the others
    is_last_resort: ClassVar[bool] = False  # whether it is the label only where no other rule describes the feature

    @abstractmethod
    def explain(self, evidence: Evidence, feature: int) -> Proposal | None:
        """A proposal, or None if this kind of text does not apply to the feature."""

    def proposals(self, evidence: Evidence, feature: int) -> list[Proposal]:
        """All proposals: one or none, unless several texts come from elsewhere."""
        proposal = self.explain(evidence, feature)
        return [] if proposal is None else [proposal]

    @abstractmethod
    def items(self, evidence: Evidence, event: Event) -> frozenset[Hashable]:
        """What rules of this kind look at in an event: a rule matches if it shares an item."""


def best_of(candidates: Iterable[str], counted: Callable[[list[str]], Counts]) -> list[str]:
    """Up to three candidates, chosen one after the other, that together have the best F2 on the explain part."""
    chosen: list[str] = []
    left = set(candidates)
    best = 0.0

    while len(chosen) < MAX_STRINGS and left:
        score, text = max((counted([*chosen, c]).f2, c) for c in left)
        if not score > best * (1 + WORTH):
            break
        best = score
        chosen.append(text)
        left.remove(text)

    return chosen


def best_sums(sums: dict[str, tuple[int, int]], part: Strong) -> list[str]:
    """What `best_of` chooses where no token has two texts, so that (firings, occurrences) of texts add up: all at once."""
    n_pos, n_neg = part.n_strong, part.n_tokens - part.n_strong
    if n_pos == 0 or n_neg == 0:
        return []
    texts = sorted(sums)  # of several that are equally good, the last one is taken
    hits, occurrences = np.array([sums[text] for text in texts], np.int64).reshape(-1, 2).T
    share, chosen, best = n_pos / (n_pos + n_neg), list[int](), 0.0

    while len(chosen) < min(MAX_STRINGS, len(texts)):
        all_hits, all_occurrences = hits + hits[chosen].sum(), occurrences + occurrences[chosen].sum()
        all_hits = np.maximum(all_hits, all_occurrences - n_neg)
        false = np.maximum(all_occurrences - all_hits, 0)
        recall = all_hits / n_pos
        true = recall * share
        precision = true / (true + (false + 0.5) / (n_neg + 1) * (1 - share))
        f2 = np.where(recall > 0, 5 * precision * recall / np.where(recall > 0, 4 * precision + recall, 1), 0.0)
        f2[chosen] = -1.0
        place = len(f2) - 1 - int(f2[::-1].argmax())
        if not f2[place] > best * (1 + WORTH):
            break
        best = f2[place]
        chosen.append(place)

    return [texts[place] for place in chosen]


def quoted(texts: Iterable[str]) -> str:
    """Texts in quotation marks, joined by commas."""
    return ", ".join(f"\u201c{text}\u201d" for text in texts)


def token_proposal(evidence: Evidence, feature: int, kind: str, prefix: str) -> Proposal | None:
    """A proposal by the tokens under ("current"), after ("next") or before ("previous") the feature's firings."""
    explain, test = evidence.counts(feature, kind)
    tokens_by_text = evidence.tokens_by_text
    firings: dict[str, int] = {}
    for token, n in explain.hits.items():
        text = evidence.normal(token)
        firings[text] = firings.get(text, 0) + n

    chosen = best_sums({text: (n, evidence.occurrences_of_text[text]) for text, n in firings.items()}, explain)
    if not chosen:
        return None
    tokens = joined(tokens_by_text, chosen)
    return Proposal(prefix + quoted(chosen), frozenset(chosen), explain.of(tokens), test.of(tokens))


def joined(groups: dict[str, set[int]], texts: Iterable[str]) -> set[int]:
    """Tokens of all the groups."""
    return set().union(*(groups[text] for text in texts))


def token_near(evidence: Evidence, event: Event, offset: int) -> frozenset[Hashable]:
    """The text of the token `offset` places after the event's, as a set; empty outside the window."""
    place = event.peak + offset
    return frozenset({evidence.normal(event.ids[place])}) if 0 <= place < len(event.ids) else frozenset()
