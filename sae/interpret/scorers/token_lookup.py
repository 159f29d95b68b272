"""The baseline that any explanation must beat: a table of each token's mean activation as the prediction."""

from __future__ import annotations

from functools import lru_cache
from typing import final

import numpy as np

from feature_store import evidence_queries
from feature_store.store import Store
from sae.interpret.intervals import grouped_correlation
from sae.interpret.scorer import Figure, Scorer, ScoringCase


@final
class TokenLookup(Scorer):
    """Correlation over all test tokens of the activation with its mean on the token in the explain documents.

    The interval leaves out one tenth of the documents at a time. It is the simulation score (Bills et al. 2023) of
    a predictor that knows the tokens only; chance is 0.
    """

    name = "token_lookup"
    about_label = False

    def score(self, case: ScoringCase) -> list[Figure]:
        """correlation; nothing if the feature does not fire in both parts."""
        sums = _lookups(case.evidence.store)[case.feature]
        sizes = np.array(case.evidence.store.meta["group_totals"], float)
        interval = grouped_correlation(sums, sizes)
        _, n_test = case.evidence.strong(case.feature)
        return [Figure("correlation", interval, 0.0, n_test.n_strong, n_neg=n_test.n_tokens - n_test.n_strong)]


@lru_cache(maxsize=1)
def _lookups(store: Store) -> np.ndarray:
    return evidence_queries.lookups(store)
