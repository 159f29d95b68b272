"""Explains a feature by the positions in a document at which it fires."""

from __future__ import annotations

from collections.abc import Hashable
from typing import final

from feature_store.indexing.formats import position_name
from sae.interpret.events import Event
from sae.interpret.evidence import Counts, Evidence
from sae.interpret.explainer import Explainer, Proposal, best_of


@final
class Position(Explainer):
    """Rule: the feature fires strongly exactly on tokens in these ranges, counted from the start of the document or of
    the context.
    """

    name = "position"
    order = 6
    margin = 0.03

    def explain(self, evidence: Evidence, feature: int) -> Proposal | None:
        """Up to three ranges, tested on every token of the test documents."""
        parts, firings = evidence.strong(feature), evidence.positions[feature]
        totals = evidence.store.meta["position_totals"]

        def counted(ranges: list[str], part: int) -> Counts:
            bins = [int(r) for r in ranges]
            return parts[part].counts(sum(int(firings[part][b]) for b in bins), sum(totals[part][b] for b in bins))

        chosen = best_of((str(b) for b in range(len(totals[0])) if firings[0][b]), lambda ranges: counted(ranges, 0))
        if not chosen:
            return None

        bins = sorted(int(r) for r in chosen)
        text = "position " + ", ".join(position_name(b) for b in bins) + " in a document or context"

        return Proposal(text, frozenset(bins), counted(chosen, 0), counted(chosen, 1))

    def items(self, evidence: Evidence, event: Event) -> frozenset[Hashable]:
        """The range that the token's place lies in."""
        return frozenset({evidence.events.position_of(event)})
