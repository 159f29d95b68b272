"""The feature store as pandas tables, for notebooks and scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from feature_store import queries
from feature_store.records import FeatureRow
from feature_store.store import Store

if TYPE_CHECKING:
    from pandas import DataFrame


def features(store: Store) -> DataFrame:
    """One row per feature, indexed by it, with the columns of `FeatureRow`."""
    import pandas as pd

    rows = [store.columns.row(feature) for feature in range(store.columns.n)]
    return pd.DataFrame(rows, columns=list(FeatureRow.__dataclass_fields__)).set_index("feature")


def scores(store: Store) -> DataFrame:
    """One row per score. A score of the feature itself, whatever its label, has no explainer and no text."""
    return (
        store.cursor()
        .execute(
            """select s.feature, e.explainer, e.text, e.chosen, s.* exclude (feature, explanation)
            from score s left join explanation e on e.id = s.explanation
            order by s.feature, e.id, s.scorer, s.metric"""
        )
        .df()
    )


def contexts(store: Store, feature: int, group: queries.WindowGroup = "all") -> DataFrame:
    """One row per stored context of a feature: text before the peak, the peak, text after it; activations by token."""
    import pandas as pd

    rows = []
    for window in queries.windows(store, feature, group):
        texts = store.vocabulary.texts(window.token_ids)
        before, peak, after = texts[: window.peak], texts[window.peak], texts[window.peak + 1 :]
        rows.append(
            {
                "group": window.group,
                "act": window.acts[window.peak],
                "before": "".join(before),
                "peak": peak,
                "after": "".join(after),
                "document": window.document_name,
                "acts": window.acts,
            }
        )

    return pd.DataFrame(rows, columns=["group", "act", "before", "peak", "after", "document", "acts"])
