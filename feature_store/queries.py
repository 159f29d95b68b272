"""Every read of the store: one named function each, returning records."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np

from feature_store import schema
from feature_store.packing import Pack, dense_windows, unpack_columns
from feature_store.records import (
    Concept,
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
from feature_store.writer import read_pointer

SortKey = Literal["feature", "density", "max_act", "mean_act", "n_documents", "score", "label"]
_SORT_SQL: dict[str, str] = {
    "feature": "f.feature",
    "density": "f.density",
    "max_act": "f.max_act",
    "mean_act": "f.mean_act",
    "n_documents": "f.n_documents",
    "score": "l.score",
    "label": "l.text",
}
_ROW = "f.feature, f.density, f.n_fired, f.mean_act, f.max_act, f.n_documents, l.text, l.explainer, l.score"
_FROM = "from contexts.feature f left join explanations.label l using (feature)"


class StoreError(Exception):
    """A store that is missing, of a newer format, or not a store."""


class Store:
    """The published generations of one dictionary, opened read-only; make a cursor per request."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.pointer = read_pointer(folder)
        if "contexts" not in self.pointer:
            raise StoreError(f"{folder}: no published generation. Run sae-train to its end first.")

        self.connection = duckdb.connect()
        self.connection.execute("set autoinstall_known_extensions=false; set autoload_known_extensions=false")
        self.connection.execute("set threads=1")
        for kind in ("contexts", "explanations"):
            self._attach(kind)

        self.connection.execute("set enable_external_access=false; set lock_configuration=true")
        self.meta = dict(self.connection.execute("select key, value from contexts.meta").fetchall())
        self.meta = {key: json.loads(value) for key, value in self.meta.items()}
        self.generation = "-".join(self.pointer[k]["sha256"][:12] for k in sorted(self.pointer))
        self.document_names: dict[int, str] = dict(
            self.connection.execute("select document, name from contexts.document").fetchall()
        )
        self.token_bytes: dict[int, bytes] = dict(
            self.connection.execute("select token, text from contexts.token").fetchall()
        )

    def _attach(self, kind: str) -> None:
        """Attaches one generation, or an empty one in memory if none of its kind is published."""
        if kind in self.pointer:
            path = self.folder / self.pointer[kind]["file"]
            try:
                self.connection.execute(f"attach '{path}' as {kind} (read_only)")
                versions = self.connection.execute(
                    f"select value from {kind}.meta where key = 'format_version'"
                ).fetchall()
            except duckdb.Error as error:
                raise StoreError(f"{path}: DuckDB cannot open it as a saedex store: {error}") from None
            if not versions or int(versions[0][0]) != schema.FORMAT_VERSION:
                raise StoreError(f"{path}: format {versions}, this saedex reads format {schema.FORMAT_VERSION}.")
        else:
            self.connection.execute(f"attach ':memory:' as {kind}; use {kind}")
            for statement in schema.EXPLANATIONS:
                self.connection.execute(statement)
            self.connection.execute("use memory")

    def close(self) -> None:
        """Closes the connection."""
        self.connection.close()

    def text_of(self, tokens: list[int]) -> list[str]:
        """Display text of each token. A character split over tokens is shown whole on its last one."""
        pieces, pending = [], b""
        for token in tokens:
            pending += self.token_bytes.get(token, b"")
            try:
                pieces.append(pending.decode("utf-8"))
                pending = b""
            except UnicodeDecodeError:
                if len(pending) < 4:
                    pieces.append("")
                else:
                    pieces.append(pending.decode("utf-8", "replace"))
                    pending = b""

        if pending and pieces:
            pieces[-1] += pending.decode("utf-8", "replace")

        return pieces

    def shown(self, token: int) -> str:
        """Display text of one token on its own."""
        return self.token_bytes.get(token, b"").decode("utf-8", "replace")

    def tokens_like(self, text: str) -> list[int]:
        """Ids of the tokens whose text equals `text`, both stripped and in lower case."""
        return self._by_text.get(text.strip().lower(), [])

    @cached_property
    def _by_text(self) -> dict[str, list[int]]:
        tokens: dict[str, list[int]] = {}
        for token in self.token_bytes:
            tokens.setdefault(self.shown(token).strip().lower(), []).append(token)
        return tokens


def _row(values: tuple[Any, ...]) -> FeatureRow:
    return FeatureRow(*values)


def features(
    store: Store,
    *,
    sort: SortKey = "feature",
    descending: bool = False,
    limit: int = 50,
    offset: int = 0,
    min_density: float | None = None,
    max_density: float | None = None,
    min_score: float | None = None,
    explainer: str | None = None,
    query: str | None = None,
    alive: bool = False,
) -> Page:
    """One page of the features that pass every filter, sorted (nulls last, then by id)."""
    conditions, values = ["true"], []
    for sql, value in (
        ("f.density >= ?", min_density),
        ("f.density <= ?", max_density),
        ("l.score >= ?", min_score),
        ("l.explainer = ?", explainer),
    ):
        if value is not None:
            conditions.append(sql)
            values.append(value)

    if alive:
        conditions.append("f.n_fired > 0")
    if query:
        conditions.append("contains(lower(l.text), lower(?))")
        values.append(query)

    where = " and ".join(conditions)
    order = f"{_SORT_SQL[sort]} {'desc' if descending else 'asc'} nulls last, f.feature"
    cursor = store.connection.cursor()
    rows = cursor.execute(
        f"select {_ROW} {_FROM} where {where} order by {order} limit ? offset ?", [*values, limit, offset]
    ).fetchall()
    total = cursor.execute(f"select count(*) {_FROM} where {where}", values).fetchall()[0][0]

    return Page([_row(r) for r in rows], total)


_BLOBS = """histogram, promoted_tokens, promoted_logits, suppressed_tokens, suppressed_logits,
    neighbours, neighbour_cosines"""


def _feature(store: Store, values: tuple[Any, ...], texts: list[Explanation], scores: list[Score]) -> Feature:
    """`Feature` of a result row of `_ROW` and `_BLOBS`."""
    blobs = values[9:]
    promoted, suppressed, neighbours = (
        list(zip(np.frombuffer(a, "<u4").tolist(), np.frombuffer(b, "<f4").tolist(), strict=True))
        for a, b in zip(blobs[1::2], blobs[2::2], strict=True)
    )
    histogram = np.frombuffer(blobs[0], "<u4").tolist()
    edges = store.meta["log2_edges"]
    return Feature(_row(values[:9]), histogram, edges, promoted, suppressed, neighbours, texts, scores)


def feature(store: Store, number: int) -> Feature | None:
    """One feature with its histogram, logits, neighbours and explanations; None if there is no such id."""
    cursor = store.connection.cursor()
    rows = cursor.execute(f"select {_ROW}, {_BLOBS} {_FROM} where f.feature = ?", [number]).fetchall()
    return _feature(store, rows[0], explanations(store, number), feature_scores(store, number)) if rows else None


def all_features(store: Store) -> list[Feature]:
    """Every feature in one query, without the lists of its explanations and scores."""
    cursor = store.connection.cursor()
    rows = cursor.execute(f"select {_ROW}, {_BLOBS} {_FROM} order by f.feature").fetchall()
    return [_feature(store, row, [], []) for row in rows]


_SCORE = """s.scorer, s.metric, s.value, s.low, s.high, s.chance, s.baseline, s.n_pos, s.n_neg, s.n_failed,
    s.seed, s.split, s.judge, s.prompt"""


def feature_scores(store: Store, number: int) -> list[Score]:
    """Scores of a feature that do not depend on its label."""
    cursor = store.connection.cursor()
    rows = cursor.execute(
        f"select {_SCORE} from explanations.score s where feature = ? and explanation is null order by scorer, metric",
        [number],
    ).fetchall()
    return [Score(*row) for row in rows]


def explanations(store: Store, number: int) -> list[Explanation]:
    """All explanations of a feature with their scores, the chosen one first."""
    cursor = store.connection.cursor()
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
    cursor = store.connection.cursor()
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
    cursor = store.connection.cursor()
    rows = cursor.execute(
        """select feature, windows, token_ids, act_places, act_values, max_act from contexts.context_pack
        join contexts.feature using (feature) where feature >= ? and feature < ? order by feature""",
        [first, last],
    ).fetchall()
    return [(row[0], unpack_columns(row[1:5], store.meta["id_bytes"], row[5])) for row in rows]


def windows(store: Store, number: int) -> list[Window]:
    """All stored windows of a feature: the top ones by rank, then the strata from the strongest down."""
    out = []
    for pack in (pack for _, pack in packs(store, number, number + 1)):
        for w, (ids, acts) in zip(pack.windows, dense_windows(pack), strict=True):
            document = int(w["document"])
            out.append(
                Window(
                    group="stratum" if w["is_stratum"] else "top",
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

    return sorted(out, key=lambda w: (w.group == "stratum", -w.stratum if w.group == "stratum" else 0, w.rank))


def features_of_token(store: Store, tokens: list[int], kind: str, limit: int) -> list[tuple[FeatureRow, int]]:
    """(row, times) of the features that fire most often on, or just before, any of the tokens."""
    if not tokens:
        return []

    cursor = store.connection.cursor()
    marks = ", ".join("?" * len(tokens))
    rows = cursor.execute(
        f"""with hits as (
            select feature, sum(n_explain + n_test) as times from contexts.feature_token
            where kind = ? and token in ({marks}) group by feature)
        select {_ROW}, hits.times {_FROM} join hits using (feature) order by hits.times / f.n_strong desc, f.feature limit ?""",
        [kind, *tokens, limit],
    ).fetchall()
    return [(_row(r[:9]), int(r[9])) for r in rows]


def features_promoting(store: Store, tokens: list[int], limit: int) -> list[FeatureRow]:
    """Rows of the features that promote one of the tokens, best rank first."""
    if not tokens:
        return []

    cursor = store.connection.cursor()
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
    cursor = store.connection.cursor()
    return dict(
        cursor.execute(
            "select feature, text from explanations.label where feature in (select unnest(?::uinteger[]))", [numbers]
        ).fetchall()
    )


def token_table(store: Store, kind: str) -> list[tuple[int, int, int, int]]:
    """(feature, token, times in explain documents, times in test documents) of one kind, by feature."""
    cursor = store.connection.cursor()
    return cursor.execute(
        "select feature, token, n_explain, n_test from contexts.feature_token where kind = ? order by all", [kind]
    ).fetchall()


def random_events(store: Store) -> list[tuple[int, list[int], int, int, set[int]]]:
    """(document, token ids, peak, place in the document, features that fire) of the stored random windows."""
    cursor = store.connection.cursor()
    rows = cursor.execute(
        "select document, token_ids, peak, place, latents from contexts.random_window order by id"
    ).fetchall()
    dtype = f"<u{store.meta['id_bytes']}"
    return [
        (document, np.frombuffer(ids, dtype).tolist(), peak, place, set(np.frombuffer(latents, "<u4").tolist()))
        for document, ids, peak, place, latents in rows
    ]


def negatives(store: Store) -> list[bytes]:
    """Records of the hard negatives of every feature, by feature."""
    cursor = store.connection.cursor()
    return [row[0] for row in cursor.execute("select negatives from contexts.context_pack order by feature").fetchall()]


def counted_places(store: Store) -> tuple[np.ndarray, np.ndarray]:
    """Strong firings by position [d_sae, 2, positions] and format [d_sae, 2, formats], in (explain, test) documents."""
    cursor = store.connection.cursor()
    rows = cursor.execute("select positions, formats from contexts.feature order by feature").fetchall()
    positions, formats = (np.frombuffer(b"".join(column), "<u4") for column in zip(*rows, strict=True))
    return positions.reshape(len(rows), 2, -1), formats.reshape(len(rows), 2, -1)


def lookups(store: Store) -> np.ndarray:
    """Sums [d_sae, groups, 5] behind the token-lookup correlation (feature_store.statistics)."""
    cursor = store.connection.cursor()
    rows = cursor.execute("select lookup from contexts.feature order by feature").fetchall()
    return np.frombuffer(b"".join(r[0] for r in rows), "<f8").reshape(len(rows), -1, 5)


def bigrams(store: Store) -> list[tuple[int, ...]]:
    """(feature, token before, token, strong firings in explain, test, occurrences in explain, test), by feature."""
    cursor = store.connection.cursor()
    return cursor.execute(
        "select * from contexts.feature_bigram order by feature, n_explain desc, first, second"
    ).fetchall()


def firing_counts(store: Store) -> list[tuple[int, int, int, int]]:
    """(feature, strong firings in all documents, those in test documents, test documents with one), by feature."""
    cursor = store.connection.cursor()
    return cursor.execute(
        "select feature, n_strong, n_strong_test, n_documents_strong_test from contexts.feature order by feature"
    ).fetchall()


def token_counts(store: Store) -> list[tuple[int, int, int]]:
    """(token, occurrences in explain documents, in test documents), by token."""
    cursor = store.connection.cursor()
    return cursor.execute("select token, n_explain, n_test from contexts.token order by token").fetchall()


def promoted_tokens(store: Store) -> dict[int, list[int]]:
    """Tokens that every feature promotes, strongest first."""
    cursor = store.connection.cursor()
    rows = cursor.execute("select feature, promoted_tokens from contexts.feature").fetchall()
    return {f: np.frombuffer(blob, "<u4").tolist() for f, blob in rows}


def test_documents(store: Store) -> set[int]:
    """Documents kept for testing explanations."""
    cursor = store.connection.cursor()
    return {r[0] for r in cursor.execute("select document from contexts.document where is_test").fetchall()}


def nearness(store: Store) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Per feature its nearest features with scores: [by cosine of decoder rows, by cosine of firing]."""
    cursor = store.connection.cursor()
    rows = cursor.execute(
        "select neighbours, neighbour_cosines, coactive, coactive_scores from contexts.feature order by feature"
    ).fetchall()
    pairs = lambda ids, scores: (np.frombuffer(ids, "<u4").astype(np.int64), np.frombuffer(scores, "<f4"))  # noqa: E731
    return [[pairs(a, b), pairs(c, d)] for a, b, c, d in rows]


def document_features(store: Store) -> list[bytes]:
    """Strongest features of every document, as uint32."""
    cursor = store.connection.cursor()
    return [row[0] for row in cursor.execute("select latents from contexts.document order by document").fetchall()]


def concepts(store: Store) -> list[Concept]:
    """Every concept: the first level by falling size, each followed by its parts."""
    cursor = store.connection.cursor()
    rows = cursor.execute(
        "select concept, parent, name, coverage, purity, features from explanations.concept order by concept"
    ).fetchall()
    return [
        Concept(number, parent, name, coverage, purity, np.frombuffer(members, "<u4").tolist())
        for number, parent, name, coverage, purity, members in rows
    ]


def document_latents(store: Store, document: int) -> tuple[str, list[tuple[int, float, float]]] | None:
    """(name, [(feature, mean, maximum)]) of a document's strongest features; None where there is no such document."""
    cursor = store.connection.cursor()
    rows = cursor.execute(
        "select name, latents, means, maxima from contexts.document where document = ?", [document]
    ).fetchall()
    if not rows:
        return None
    name, latents, means, maxima = rows[0]
    columns = (np.frombuffer(latents, "<u4"), np.frombuffer(means, "<f4"), np.frombuffer(maxima, "<f4"))
    return name, list(zip(*(c.tolist() for c in columns), strict=True))


def densities(store: Store) -> np.ndarray:
    """Density of every feature, by id."""
    cursor = store.connection.cursor()
    return np.array([r[0] for r in cursor.execute("select density from contexts.feature order by feature").fetchall()])


def counts(store: Store) -> dict[str, int]:
    """Features in all, alive, and labelled."""
    cursor = store.connection.cursor()
    total, alive = cursor.execute("select count(*), count(*) filter (n_fired > 0) from contexts.feature").fetchall()[0]
    labelled = cursor.execute("select count(*) from explanations.label").fetchall()[0][0]
    return {"features": total, "alive": alive, "labelled": labelled}
