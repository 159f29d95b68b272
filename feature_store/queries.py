"""What the API and the pages read of a store: one named function per question, each returns records."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt

from feature_store.packing import GROUPS, JUDGED, Pack, dense_windows, unpack_columns
from feature_store.records import (
    ActiveFeature,
    Concept,
    Document,
    Explanation,
    ExplanationRow,
    Feature,
    FeatureRow,
    Interpretation,
    JudgedRow,
    JudgedWindow,
    LabelRow,
    RandomWindow,
    Score,
    ScoreRow,
    TokenHit,
    Window,
)
from feature_store.store import Store

SortKey = Literal["feature", "density", "max_act", "mean_act", "n_documents", "score", "low", "label"]
WindowGroup = Literal["top", "stratum", "all"]
_ROW = """f.feature, f.density, f.n_fired, f.mean_act, f.max_act, f.n_documents, l.text, l.explainer, l.score, l.low,
    l.high, l.n_pos, l.f2, f.n_strong / nullif(f.n_fired, 0)"""
_ROW_COLUMNS = len(fields(FeatureRow))
_FROM = "from feature f left join label l using (feature)"


def _row(values: tuple[Any, ...]) -> FeatureRow:
    return FeatureRow(*values)


_BLOBS = """histogram, promoted_tokens, promoted_logits, suppressed_tokens, suppressed_logits,
    neighbours, neighbour_cosines, coactive, coactive_scores, positions, formats"""


def _feature(store: Store, values: tuple[Any, ...], texts: list[Explanation], scores: list[Score]) -> Feature:
    """`Feature` of a result row of `_ROW` and `_BLOBS`."""
    blobs = values[_ROW_COLUMNS:]
    promoted, suppressed, neighbours, coactive = (
        list(zip(np.frombuffer(a, "<u4").tolist(), np.frombuffer(b, "<f4").tolist(), strict=True))
        for a, b in zip(blobs[1:9:2], blobs[2:9:2], strict=True)
    )
    positions, formats = (np.frombuffer(blob, "<u4").reshape(2, -1).sum(axis=0).tolist() for blob in blobs[9:])
    return Feature(
        _row(values[:_ROW_COLUMNS]),
        np.frombuffer(blobs[0], "<u4").tolist(),
        store.meta["log2_edges"],
        promoted,
        suppressed=suppressed,
        neighbours=neighbours,
        coactive=[(f, score) for f, score in coactive if score > 0],
        positions=positions,
        formats=formats,
        explanations=texts,
        scores=scores,
    )


def features(store: Store, first: int, last: int) -> list[Feature]:
    """The features first .. last - 1 with all that is said of them."""
    cursor, span = store.cursor(), [first, last]
    where = "feature >= ? and feature < ?"
    rows = cursor.execute(f"select {_ROW}, {_BLOBS} {_FROM} where f.{where} order by f.feature", span).fetchall()
    texts: dict[int, dict[int, Explanation]] = {}
    for feature, key, explainer, text, chosen in cursor.execute(
        f"select feature, id, explainer, text, chosen from explanation where {where} order by feature, chosen desc, id",
        span,
    ).fetchall():
        texts.setdefault(feature, {})[key] = Explanation(explainer, text, chosen)

    scores: dict[int, list[Score]] = {}
    for feature, key, *score in cursor.execute(
        f"select feature, explanation, {_SCORE} from score s where {where} order by scorer, metric", span
    ).fetchall():
        target = scores.setdefault(feature, []) if key is None else texts[feature][key].scores
        target.append(Score(*score))

    return [_feature(store, row, list(texts.get(row[0], {}).values()), scores.get(row[0], [])) for row in rows]


def all_features(store: Store) -> list[Feature]:
    """Every feature in one query, without the lists of its explanations and scores."""
    cursor = store.cursor()
    rows = cursor.execute(f"select {_ROW}, {_BLOBS} {_FROM} order by f.feature").fetchall()
    return [_feature(store, row, [], []) for row in rows]


_SCORE = """s.scorer, s.metric, s.value, s.low, s.high, s.chance, s.baseline, s.n_pos, s.n_neg, s.n_failed,
    s.seed, s.split, s.judge, s.prompt"""


def interpretation(store: Store) -> Interpretation:
    """All rows of the published explanations, scores and labels."""
    cursor = store.cursor()
    explanations = cursor.execute("select * from explanation order by id").fetchall()
    scores = cursor.execute("select * from score order by all").fetchall()
    labels = cursor.execute("select * from label order by feature").fetchall()
    judged = cursor.execute("select * from judged order by feature, explanation, scorer").fetchall()
    return Interpretation(
        [ExplanationRow(*row) for row in explanations],
        [ScoreRow(feature, explanation, Score(*score)) for feature, explanation, *score in scores],
        [LabelRow(*row) for row in labels],
        [JudgedRow(feature, explanation, scorer, unpack_judged(blob)) for feature, explanation, scorer, blob in judged],
    )


def unpack_judged(blob: bytes) -> tuple[JudgedWindow, ...]:
    """Windows of a row of `judged`."""
    return tuple(JudgedWindow(*record) for record in np.frombuffer(blob, JUDGED).tolist())


def judged(store: Store, feature: int) -> list[tuple[str, str, str, tuple[JudgedWindow, ...]]]:
    """(scorer, explainer, text, windows that were judged) of every explanation of a feature for which they are kept."""
    rows = (
        store.cursor()
        .execute(
            """select scorer, explainer, text, windows from judged j join explanation e on e.id = j.explanation
            where j.feature = ? order by chosen desc, e.id, scorer""",
            [feature],
        )
        .fetchall()
    )
    return [(scorer, explainer, text, unpack_judged(blob)) for scorer, explainer, text, blob in rows]


def document_text(store: Store, number: int) -> UInt[np.ndarray, " tokens"] | None:
    """Token ids of a document; None if its text is not kept."""
    rows = store.cursor().execute("select token_ids from document_text where document = ?", [number]).fetchall()
    return np.frombuffer(rows[0][0], f"<u{store.meta['id_bytes']}") if rows else None


def packs(store: Store, first: int, last: int) -> list[tuple[int, Pack]]:
    """(feature, pack of its windows) for the features first .. last - 1."""
    cursor = store.cursor()
    rows = cursor.execute(
        """select feature, windows, token_ids, act_places, act_values, max_act from context_pack
        join feature using (feature) where feature >= ? and feature < ? order by feature""",
        [first, last],
    ).fetchall()
    return [(row[0], unpack_columns(row[1:5], store.meta["id_bytes"], row[5])) for row in rows]


def windows(store: Store, number: int, group: WindowGroup = "all") -> list[Window]:
    """Stored windows of a feature, of one group or of both, from the strongest down: the top ones, then the strata.

    A stratum's windows that are among the top ones are left out, and so are those of uniform draws, which scores are
    made of.
    """
    [(_, pack)] = packs(store, number, number + 1)
    out = []
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
                place=int(w["place"]),
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


def features_of_token(store: Store, tokens: list[int], kind: str, limit: int) -> list[TokenHit]:
    """Features that fire on (before, after) any of the tokens, by the geometric mean of both shares, the largest first."""
    if not tokens:
        return []

    marks = ", ".join("?" * len(tokens))
    rows = (
        store.cursor()
        .execute(
            f"""with hits as (
                select feature, sum(n_explain + n_test)::ubigint as times from feature_token
                where kind = ? and token in ({marks}) group by feature),
            occurrences as (select sum(n_explain + n_test)::ubigint as n from token where token in ({marks}))
            select feature, times, times / n_strong as of_firings, times / n as of_tokens
            from hits join feature f using (feature), occurrences
            order by of_firings * of_tokens desc, feature limit ?""",
            [kind, *tokens, *tokens, limit],
        )
        .fetchall()
    )
    return [TokenHit(*row) for row in rows]


def features_promoting(store: Store, tokens: list[int], limit: int) -> list[tuple[int, int, float]]:
    """(feature, token, height) of the features that promote one of the tokens most, each with its best token."""
    if not tokens:
        return []

    marks = ", ".join("?" * len(tokens))
    rows = (
        store.cursor()
        .execute(f"select token, features, heights from promotion where token in ({marks}) order by token", tokens)
        .fetchall()
    )
    best: dict[int, tuple[float, int]] = {}
    for token, features, heights in rows:
        for feature, height in zip(
            np.frombuffer(features, "<u4").tolist(), np.frombuffer(heights, "<f4").tolist(), strict=True
        ):
            best[feature] = max(best.get(feature, (0.0, token)), (height, token))

    ranked = sorted(best, key=lambda feature: (-best[feature][0], feature))
    return [(feature, best[feature][1], best[feature][0]) for feature in ranked[:limit]]


def token_occurrences(store: Store, tokens: list[int]) -> dict[int, int]:
    """How often each of the tokens occurs in the text."""
    marks = ", ".join("?" * len(tokens)) or "null"
    return dict(
        store.cursor()
        .execute(f"select token, n_explain + n_test from token where token in ({marks})", tokens)
        .fetchall()
    )


def random_windows(store: Store) -> list[RandomWindow]:
    """The stored random windows, in the order in which they were drawn."""
    cursor = store.cursor()
    rows = cursor.execute("select document, token_ids, peak, place, latents from random_window order by id").fetchall()
    dtype = f"<u{store.meta['id_bytes']}"
    return [
        RandomWindow(document, np.frombuffer(ids, dtype), peak, place, latents=np.frombuffer(latents, "<u4"))
        for document, ids, peak, place, latents in rows
    ]


def documents_of_features(store: Store, only: int | None = None) -> dict[int, list[tuple[int, float, float]]]:
    """Documents of every feature, or of one, in which it is among the strongest, as (document, mean, maximum).

    The largest mean comes first. Features that are among the strongest of no document are left out.
    """
    rows = store.cursor().execute("select document, latents, means, maxima from document order by document").fetchall()
    by_feature: dict[int, list[tuple[int, float, float]]] = {}
    for document, *blobs in rows:
        columns = (
            np.frombuffer(blob, dtype).tolist() for blob, dtype in zip(blobs, ("<u4", "<f4", "<f4"), strict=True)
        )
        for latent, mean, maximum in zip(*columns, strict=True):
            if only in (None, latent):
                by_feature.setdefault(latent, []).append((document, mean, maximum))
    return {f: sorted(documents, key=lambda d: (-d[1], d[0])) for f, documents in by_feature.items()}


def concepts(store: Store) -> list[Concept]:
    """Every concept: the first level by falling size, each followed by its parts."""
    cursor = store.cursor()
    rows = cursor.execute(
        "select concept, parent, name, coverage, purity, features from concept order by concept"
    ).fetchall()
    return [
        Concept(number, parent, name, coverage, purity=purity, features=np.frombuffer(members, "<u4").tolist())
        for number, parent, name, coverage, purity, members in rows
    ]


def explainers_of_labels(store: Store) -> list[tuple[str, int]]:
    """(explainer, labels from it), the one with most labels first."""
    return (
        store.cursor()
        .execute("select explainer, count(*) from label group by explainer order by count(*) desc, explainer")
        .fetchall()
    )


def document(store: Store, number: int) -> Document | None:
    """A document with its strongest features; None where there is no such document."""
    cursor = store.cursor()
    rows = cursor.execute("select name, latents, means, maxima from document where document = ?", [number]).fetchall()
    if not rows:
        return None
    name, latents, means, maxima = rows[0]
    columns = (np.frombuffer(latents, "<u4"), np.frombuffer(means, "<f4"), np.frombuffer(maxima, "<f4"))
    return Document(name, [ActiveFeature(*row) for row in zip(*(c.tolist() for c in columns), strict=True)])


def counts(store: Store) -> dict[str, int]:
    """Features in all, alive, and labelled."""
    total, alive = store.cursor().execute("select count(*), count(*) filter (n_fired > 0) from feature").fetchall()[0]
    labelled = store.cursor().execute("select count(*) from label").fetchall()[0][0]
    return {"features": total, "alive": alive, "labelled": labelled}
