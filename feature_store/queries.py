"""What the API and the pages read of a store: one named function per question, each returns records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from feature_store.packing import GROUPS, Pack, dense_windows, unpack_columns
from feature_store.records import (
    ActiveFeature,
    Concept,
    Document,
    Explanation,
    ExplanationRow,
    Feature,
    FeatureRow,
    Interpretation,
    LabelRow,
    Page,
    Score,
    ScoreRow,
    Window,
)
from feature_store.store import Store

ROWS = 2000  # fetched at a time
SortKey = Literal["feature", "density", "max_act", "mean_act", "n_documents", "score", "low", "label"]
WindowGroup = Literal["top", "stratum", "all"]
_SORT_SQL: dict[str, str] = {
    "feature": "f.feature",
    "density": "f.density",
    "max_act": "f.max_act",
    "mean_act": "f.mean_act",
    "n_documents": "f.n_documents",
    "score": "l.score",
    "low": "l.low",
    "label": "l.text",
}
_ROW = """f.feature, f.density, f.n_fired, f.mean_act, f.max_act, f.n_documents, l.text, l.explainer, l.score, l.low,
    l.high, l.n_pos, l.f2, f.n_strong / nullif(f.n_fired, 0)"""
_ROW_COLUMNS = len(fields(FeatureRow))
_FROM = "from contexts.feature f left join explanations.label l using (feature)"


def _row(values: tuple[Any, ...]) -> FeatureRow:
    return FeatureRow(*values)


@dataclass(frozen=True)
class Filter:
    """Which features are wanted, and in what order: those that pass every condition that is not None."""

    sort: SortKey = "feature"
    descending: bool = False
    ids: list[int] | None = None
    min_density: float | None = None
    max_density: float | None = None
    min_score: float | None = None
    explainer: str | None = None
    query: str | None = None  # part of a label
    alive: bool = False

    def sql(self) -> tuple[str, list[Any]]:
        """The condition, and the values of its parameters."""
        conditions, values = ["true"], []
        for sql, value in (
            ("list_contains(?::ubigint[], f.feature::ubigint)", self.ids),
            ("f.density >= ?", self.min_density),
            ("f.density <= ?", self.max_density),
            ("l.score >= ?", self.min_score),
            ("l.explainer = ?", self.explainer),
            ("contains(lower(l.text), lower(?))", self.query or None),
        ):
            if value is not None:
                conditions.append(sql)
                values.append(value)
        if self.alive:
            conditions.append("f.n_fired > 0")
        return " and ".join(conditions), values

    @property
    def order(self) -> str:
        """The order in SQL: nulls last, then by id."""
        return f"{_SORT_SQL[self.sort]} {'desc' if self.descending else 'asc'} nulls last, f.feature"


def features(store: Store, wanted: Filter | None = None, *, limit: int = 50, offset: int = 0) -> Page:
    """One page of the features that pass a filter, and how many do."""
    wanted = wanted or Filter()
    where, values = wanted.sql()
    cursor = store.cursor()
    rows = cursor.execute(
        f"select {_ROW} {_FROM} where {where} order by {wanted.order} limit ? offset ?", [*values, limit, offset]
    ).fetchall()
    total = cursor.execute(f"select count(*) {_FROM} where {where}", values).fetchall()[0][0]

    return Page([_row(r) for r in rows], total)


def every_feature(store: Store, wanted: Filter) -> Iterator[list[FeatureRow]]:
    """All features that pass a filter, some thousand at a time."""
    where, values = wanted.sql()
    cursor = store.cursor()
    cursor.execute(f"select {_ROW} {_FROM} where {where} order by {wanted.order}", values)
    while rows := cursor.fetchmany(ROWS):
        yield [_row(row) for row in rows]


_BLOBS = """histogram, promoted_tokens, promoted_logits, suppressed_tokens, suppressed_logits,
    neighbours, neighbour_cosines"""


def _feature(store: Store, values: tuple[Any, ...], texts: list[Explanation], scores: list[Score]) -> Feature:
    """`Feature` of a result row of `_ROW` and `_BLOBS`."""
    blobs = values[_ROW_COLUMNS:]
    promoted, suppressed, neighbours = (
        list(zip(np.frombuffer(a, "<u4").tolist(), np.frombuffer(b, "<f4").tolist(), strict=True))
        for a, b in zip(blobs[1::2], blobs[2::2], strict=True)
    )
    histogram = np.frombuffer(blobs[0], "<u4").tolist()
    edges = store.meta["log2_edges"]
    return Feature(
        _row(values[:_ROW_COLUMNS]),
        histogram,
        edges,
        promoted,
        suppressed=suppressed,
        neighbours=neighbours,
        explanations=texts,
        scores=scores,
    )


def feature(store: Store, number: int) -> Feature | None:
    """One feature with its histogram, logits, neighbours and explanations; None if there is no such id."""
    cursor = store.cursor()
    rows = cursor.execute(f"select {_ROW}, {_BLOBS} {_FROM} where f.feature = ?", [number]).fetchall()
    return _feature(store, rows[0], explanations(store, number), feature_scores(store, number)) if rows else None


def feature_row(store: Store, number: int) -> FeatureRow | None:
    """One feature as a table shows it; None if there is no such id."""
    rows = store.cursor().execute(f"select {_ROW} {_FROM} where f.feature = ?", [number]).fetchall()
    return _row(rows[0]) if rows else None


def all_features(store: Store) -> list[Feature]:
    """Every feature in one query, without the lists of its explanations and scores."""
    cursor = store.cursor()
    rows = cursor.execute(f"select {_ROW}, {_BLOBS} {_FROM} order by f.feature").fetchall()
    return [_feature(store, row, [], []) for row in rows]


_SCORE = """s.scorer, s.metric, s.value, s.low, s.high, s.chance, s.baseline, s.n_pos, s.n_neg, s.n_failed,
    s.seed, s.split, s.judge, s.prompt"""


def feature_scores(store: Store, number: int) -> list[Score]:
    """Scores of a feature that do not depend on its label."""
    cursor = store.cursor()
    rows = cursor.execute(
        f"select {_SCORE} from explanations.score s where feature = ? and explanation is null order by scorer, metric",
        [number],
    ).fetchall()
    return [Score(*row) for row in rows]


def explanations(store: Store, number: int) -> list[Explanation]:
    """All explanations of a feature with their scores, the chosen one first."""
    cursor = store.cursor()
    rows = cursor.execute(
        f"""select e.id, e.explainer, e.text, e.chosen, {_SCORE}
        from explanations.explanation e left join explanations.score s on s.explanation = e.id
        where e.feature = ? order by e.chosen desc, e.id, s.scorer, s.metric""",
        [number],
    ).fetchall()
    by_id: dict[int, Explanation] = {}

    for key, explainer, text, chosen, *score in rows:
        explanation = by_id.setdefault(key, Explanation(explainer, text, chosen))
        if score[0] is not None:
            explanation.scores.append(Score(*score))

    return list(by_id.values())


def interpretation(store: Store) -> Interpretation:
    """All rows of the published explanations, scores and labels."""
    cursor = store.cursor()
    explanations = cursor.execute("select * from explanations.explanation order by id").fetchall()
    scores = cursor.execute("select * from explanations.score order by all").fetchall()
    labels = cursor.execute("select * from explanations.label order by feature").fetchall()
    return Interpretation(
        [ExplanationRow(*row) for row in explanations],
        [ScoreRow(feature, explanation, Score(*score)) for feature, explanation, *score in scores],
        [LabelRow(*row) for row in labels],
    )


def packs(store: Store, first: int, last: int) -> list[tuple[int, Pack]]:
    """(feature, pack of its windows) for the features first .. last - 1."""
    cursor = store.cursor()
    rows = cursor.execute(
        """select feature, windows, token_ids, act_places, act_values, max_act from contexts.context_pack
        join contexts.feature using (feature) where feature >= ? and feature < ? order by feature""",
        [first, last],
    ).fetchall()
    return [(row[0], unpack_columns(row[1:5], store.meta["id_bytes"], row[5])) for row in rows]


def windows(store: Store, number: int, group: WindowGroup = "all") -> list[Window]:
    """Stored windows of a feature, of one group or of both, from the strongest down: the top ones, then the strata.

    A stratum's windows that are among the top ones are left out, and so are those of uniform draws, which scores are
    made of.
    """
    out = []
    for pack in (pack for _, pack in packs(store, number, number + 1)):
        for w, (ids, acts) in zip(pack.windows, dense_windows(pack), strict=True):
            if w["group"] == GROUPS.index("uniform"):
                continue
            document = int(w["document"])
            out.append(
                Window(
                    group=GROUPS[w["group"]],
                    rank=int(w["rank"]),
                    stratum=int(w["stratum"]),
                    document=document,
                    document_name=store.document_names.get(document, ""),
                    context=int(w["context"]),
                    peak=int(w["peak"]),
                    token_ids=ids.tolist(),
                    acts=acts.tolist(),
                    copies=int(w["copies"]),
                    percentile=float(w["percentile"]),
                    inclusion=float(w["inclusion"]),
                )
            )

    shown_on_top = {(w.context, *w.token_ids) for w in out if w.group == "top"}
    top = sorted((w for w in out if w.group == "top"), key=lambda w: w.rank)
    strata = [w for w in out if w.group == "stratum" and (w.context, *w.token_ids) not in shown_on_top]
    strata.sort(key=lambda w: (-w.stratum, -w.acts[w.peak], w.rank))
    return [w for w in (*top, *strata) if group in ("all", w.group)]


def features_of_token(store: Store, tokens: list[int], kind: str, limit: int) -> list[tuple[FeatureRow, int]]:
    """(row, times) of the features that fire most often on, or just before, any of the tokens."""
    if not tokens:
        return []

    cursor = store.cursor()
    marks = ", ".join("?" * len(tokens))
    rows = cursor.execute(
        f"""with hits as (
            select feature, sum(n_explain + n_test) as times from contexts.feature_token
            where kind = ? and token in ({marks}) group by feature)
        select {_ROW}, hits.times {_FROM} join hits using (feature) order by hits.times / f.n_strong desc, f.feature limit ?""",
        [kind, *tokens, limit],
    ).fetchall()
    return [(_row(r[:_ROW_COLUMNS]), int(r[_ROW_COLUMNS])) for r in rows]


def features_promoting(store: Store, tokens: list[int], limit: int) -> list[FeatureRow]:
    """Rows of the features that promote one of the tokens, best rank first."""
    if not tokens:
        return []

    cursor = store.cursor()
    marks = ", ".join("?" * len(tokens))
    rows = cursor.execute(
        f"""with hits as (
            select feature, min(rank) as best from contexts.promoted where token in ({marks}) group by feature)
        select {_ROW} {_FROM} join hits using (feature) order by hits.best, f.feature limit ?""",
        [*tokens, limit],
    ).fetchall()
    return [_row(r) for r in rows]


def labels(store: Store, numbers: list[int]) -> dict[int, str]:
    """Label of each of the features that has one."""
    cursor = store.cursor()
    return dict(
        cursor.execute(
            "select feature, text from explanations.label where feature in (select unnest(?::uinteger[]))", [numbers]
        ).fetchall()
    )


def concepts(store: Store) -> list[Concept]:
    """Every concept: the first level by falling size, each followed by its parts."""
    cursor = store.cursor()
    rows = cursor.execute(
        "select concept, parent, name, coverage, purity, features from explanations.concept order by concept"
    ).fetchall()
    return [
        Concept(number, parent, name, coverage, purity=purity, features=np.frombuffer(members, "<u4").tolist())
        for number, parent, name, coverage, purity, members in rows
    ]


def explainers_of_labels(store: Store) -> list[tuple[str, int]]:
    """(explainer, labels from it), the one with most labels first."""
    cursor = store.cursor()
    return cursor.execute(
        "select explainer, count(*) from explanations.label group by explainer order by count(*) desc, explainer"
    ).fetchall()


def document(store: Store, number: int) -> Document | None:
    """A document with its strongest features; None where there is no such document."""
    cursor = store.cursor()
    rows = cursor.execute(
        "select name, latents, means, maxima from contexts.document where document = ?", [number]
    ).fetchall()
    if not rows:
        return None
    name, latents, means, maxima = rows[0]
    columns = (np.frombuffer(latents, "<u4"), np.frombuffer(means, "<f4"), np.frombuffer(maxima, "<f4"))
    return Document(name, [ActiveFeature(*row) for row in zip(*(c.tolist() for c in columns), strict=True)])


def densities(store: Store) -> Float[np.ndarray, " d_sae"]:
    """Density of every feature, by id."""
    cursor = store.cursor()
    return np.array([r[0] for r in cursor.execute("select density from contexts.feature order by feature").fetchall()])


def counts(store: Store) -> dict[str, int]:
    """Features in all, alive, and labelled."""
    cursor = store.cursor()
    total, alive = cursor.execute("select count(*), count(*) filter (n_fired > 0) from contexts.feature").fetchall()[0]
    labelled = cursor.execute("select count(*) from explanations.label").fetchall()[0][0]
    return {"features": total, "alive": alive, "labelled": labelled}
