"""What an explainer is: from a feature's evidence to a text with a rule that can be tested."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable
from typing import ClassVar, NamedTuple

from sae.interpret.events import Event
from sae.interpret.evidence import Counts, Evidence

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


def quoted(texts: Iterable[str]) -> str:
    """Texts in quotation marks, joined by commas."""
    return ", ".join(f"\u201c{text}\u201d" for text in texts)


def token_proposal(evidence: Evidence, feature: int, kind: str, prefix: str) -> Proposal | None:
    """A proposal by the tokens under ("current"), after ("next") or before ("previous") the feature's firings."""
    explain, test = evidence.counts(feature, kind)
    tokens_by_text = evidence.tokens_by_text
    candidates = {evidence.normal(token) for token in explain.hits}
    sums = {text: explain.sums(tokens_by_text[text]) for text in candidates}  # no token has two texts, so they add up
    chosen = best_of(
        candidates, lambda texts: explain.counts(sum(sums[t][0] for t in texts), sum(sums[t][1] for t in texts))
    )
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
