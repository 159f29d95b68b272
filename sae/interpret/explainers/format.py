"""Explains a feature by the look of the tokens on which it fires: numbers, line breaks, capitals, ..."""

from __future__ import annotations

from collections.abc import Hashable
from typing import final

from feature_store.indexing.formats import CLASSES, FORMATS
from sae.interpret.events import Event
from sae.interpret.evidence import Counts, Evidence
from sae.interpret.explainer import Explainer, Proposal, best_of

CHOICES: dict[str, tuple[int, ...]] = {
    **{name: (i, i + len(CLASSES)) for i, name in enumerate(CLASSES)},
    "first token of a line": tuple(range(len(CLASSES), len(FORMATS))),
    **{name: (i,) for i, name in enumerate(FORMATS) if i >= len(CLASSES)},
}


@final
class Format(Explainer):
    """Rule: the feature fires strongly exactly on tokens of these classes."""

    name = "format"
    order = 7
    margin = 0.03

    def explain(self, evidence: Evidence, feature: int) -> Proposal | None:
        """Up to three classes, tested on every token of the test documents."""
        parts, firings = evidence.strong(feature), evidence.formats[feature]
        totals = evidence.store.meta["format_totals"]

        def counted(names: list[str], part: int) -> Counts:
            cells = {cell for name in names for cell in CHOICES[name]}
            return parts[part].counts(sum(int(firings[part][c]) for c in cells), sum(totals[part][c] for c in cells))

        chosen = best_of((n for n, cells in CHOICES.items() if firings[0][list(cells)].any()), lambda n: counted(n, 0))
        if not chosen:
            return None

        cells = frozenset(cell for name in chosen for cell in CHOICES[name])

        return Proposal(", ".join(chosen), cells, counted(chosen, 0), counted(chosen, 1))

    def items(self, evidence: Evidence, event: Event) -> frozenset[Hashable]:
        """The token's class, with another one at the start of a line."""
        return frozenset({evidence.events.format_of(event)})
