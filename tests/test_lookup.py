"""Tables, search and pages beside plain references: SQL for filters, the answer made now for pages, loops for texts."""

from __future__ import annotations

import itertools
import math
import shutil
from contextlib import closing

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from fixtures import make_planted, rows_of
from hypothesis import given
from hypothesis import strategies as st

from feature_store import pointer, queries
from feature_store.engine import Engine
from feature_store.errors import StoreError
from feature_store.lookup import filters, pages
from feature_store.lookup.bodies import Surroundings, contexts_body, feature_body
from feature_store.lookup.columns import Texts
from feature_store.lookup.contrast import contrast
from feature_store.lookup.filters import Filter, Sort, Span
from feature_store.lookup.parquet_table import parquet_table
from feature_store.lookup.rendering import write_pages
from feature_store.lookup.search import KINDS, corrected, search, sentence_weights
from feature_store.lookup.vocabulary import Vocabulary, shared
from feature_store.store import Store

ROW = """f.feature, f.density, f.n_fired, f.mean_act, f.max_act, f.n_documents, l.text, l.explainer, l.score, l.low, l.high,
    l.n_pos, l.f2, f.n_strong / nullif(f.n_fired, 0)"""
FILTERS = [
    (Filter(), "true", "f.feature"),
    (Filter((Sort("low", True),)), "true", "l.low desc nulls last, f.feature"),
    (Filter((Sort("label"),)), "true", "l.text nulls last, f.feature"),
    (Filter((Sort("label", True),)), "true", "l.text desc nulls last, f.feature"),
    (
        Filter((Sort("score", True), Sort("density"), Sort("label", True))),
        "true",
        "l.score desc nulls last, f.density nulls last, l.text desc nulls last, f.feature",
    ),
    (
        Filter(ranges={"density": Span(0.001, 0.01), "score": Span(largest=0.9)}),
        "f.density between 0.001 and 0.01 and l.score <= 0.9",
        "f.feature",
    ),
    (Filter(ranges={"low": Span(), "n_documents": Span(40)}), "f.n_documents >= 40", "f.feature"),
    (Filter(explainers=("token", "bigram")), "l.explainer in ('token', 'bigram')", "f.feature"),
    (Filter(words=("TOKEN", "a")), "contains(lower(l.text), 'token') and contains(lower(l.text), 'a')", "f.feature"),
    (Filter(firing="dead"), "f.n_fired = 0", "f.feature"),
    (Filter(firing="alive", ids=[3, 5, 3, 999]), "f.n_fired > 0 and f.feature in (3, 5, 999)", "f.feature"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    make_planted(folder)
    return folder / "store"


@pytest.fixture(scope="module")
def store(folder):
    with closing(Store(folder)) as store:
        yield store


@pytest.mark.parametrize(("wanted", "where", "order"), FILTERS, ids=[str(n) for n in range(len(FILTERS))])
def test_tables_are_what_sql_says(store, wanted, where, order):
    sql = f"select {ROW} from feature f left join label l using (feature) where {where} order by {order}"
    expected = store.cursor().execute(sql).fetchall()
    rows = [row for part in filters.every_row(store.columns, wanted) for row in part]
    assert [tuple(vars(row).values()) for row in rows] == expected
    page = filters.page(store.columns, wanted, limit=7, offset=3)
    assert (page.rows, page.total) == (rows[3:10], len(rows))


def test_pages_after_a_feature_visit_each_once(store):
    wanted, visited, after = Filter((Sort("low", True),), firing="alive"), [], None
    while page := filters.page(store.columns, wanted, limit=7, after=after).rows:
        visited += [row.feature for row in page]
        after = page[-1].feature
    assert visited == wanted.found(store.columns).every().tolist() and len(visited) > 50
    assert filters.page(store.columns, wanted, after=10**6).rows == []


def test_a_table_as_parquet_has_the_same_rows(store, folder, tmp_path):
    wanted = Filter((Sort("low", True),), firing="alive").found(store.columns).every()
    path = tmp_path / "t.parquet"
    path.write_bytes(parquet_table(store, wanted))
    rows = pq.read_table(path).to_pylist()
    assert [row["feature"] for row in rows] == wanted.tolist()
    for row in rows:
        expected = vars(store.columns.row(row["feature"]))
        assert {name: row[name] for name in expected} == expected
    bare = tmp_path / "store"
    shutil.copytree(folder, bare)
    pointer.move(bare, {}, without=("explanations", "feature_pages"))
    with closing(Store(bare)) as unlabelled:
        path.write_bytes(parquet_table(unlabelled, np.array([5, 2])))
        assert [(r["feature"], r["label"]) for r in pq.read_table(path).to_pylist()] == [(5, None), (2, None)]


@given(st.lists(st.text(alphabet="ab\nç€", max_size=6), max_size=12), st.text(alphabet="abç€", min_size=1, max_size=5))
def test_texts_hold_a_part_where_a_loop_sees_it(texts, part):
    table = Texts.of(texts)
    plain = [text.replace("\n", " ") for text in texts]
    assert [table[row] for row in range(len(table))] == plain
    assert table.containing(part).tolist() == [row for row, text in enumerate(plain) if part in text]


def test_pages_are_what_is_answered_now(store):
    around = Surroundings(store)
    assert len(store.pages["feature_pages"]) == len(store.pages["context_pages"]) == store.n_features
    for number in range(store.n_features):
        [feature] = queries.features(store, number, number + 1)
        assert store.pages["feature_pages"].body(number) == orjson.dumps(feature_body(around, feature))
        [(_, pack)] = queries.packs(store, number, number + 1)
        contexts = contexts_body(store, number, feature.row.max_act, pack)
        assert store.pages["context_pages"].body(number) == orjson.dumps(contexts)


def test_contexts_are_the_windows_of_the_store(store):
    for number in range(store.n_features):
        max_act = store.columns.row(number).max_act
        [(_, pack)] = queries.packs(store, number, number + 1)
        body, windows = contexts_body(store, number, max_act, pack), queries.windows(store, number)
        assert len(body["items"]) == len(windows) and (windows or max_act == 0)
        for item, window in zip(body["items"], windows, strict=True):
            for name in ("group", "rank", "stratum", "document", "place", "peak", "copies", "token_ids"):
                assert item[name] == getattr(window, name)
            dense = np.zeros(len(item["token_ids"]))
            dense[item["places"]] = item["acts"]
            assert np.abs(dense - window.acts).max() <= max_act * 1e-4 and dense[window.peak] > 0
            assert item["percentile"] == pytest.approx(window.percentile, abs=1e-6)
            assert body["documents"][str(window.document)] == window.document_name
            assert "".join(item["texts"]) == "".join(store.vocabulary.texts(window.token_ids))


def test_pages_of_other_generations_are_not_shown(folder, tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(folder, copy)
    published = pointer.read_pointer(copy)
    pages.write(copy / "x", "elsewhere", 1, [b"{}"])
    digest = pointer.sha256_of(copy / "x")
    (copy / "x").rename(copy / f"feature_pages-{digest[:16]}.pages")
    entry = {"file": f"feature_pages-{digest[:16]}.pages", "sha256": digest}
    pointer.move(copy, {"feature_pages": entry})
    assert not (copy / published["feature_pages"]["file"]).exists()
    with closing(Store(copy)) as store:
        assert store.pages["feature_pages"] is None and store.pages["context_pages"] is not None
        assert [kind for kind, _ in write_pages(store)] == ["feature_pages"]


@pytest.mark.parametrize("damage", [lambda d: d[:700], lambda d: b"x" * 600, lambda d: d + b"x", lambda d: b""])
def test_damaged_pages_are_refused(tmp_path, damage):
    path = tmp_path / "p.pages"
    pages.write(path, "s", 30, [b"x" * n for n in range(30)])
    opened = pages.Pages(path)
    assert (len(opened), opened.source, opened.body(7)) == (30, "s", b"x" * 7)
    broken = tmp_path / "broken.pages"
    broken.write_bytes(damage(path.read_bytes()))
    with pytest.raises((StoreError, ValueError)):
        pages.Pages(broken)


def test_stores_of_one_engine_share_files_and_words(folder, tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(folder, copy)
    with closing(Engine([folder, copy], 100_000_000)) as engine:
        stores = [Store(folder, engine), Store(folder, engine), Store(copy, engine)]
        assert stores[0]._catalogs == stores[1]._catalogs != stores[2]._catalogs
        assert stores[0].vocabulary is stores[2].vocabulary
        rows = [rows_of(store) for store in stores]
        assert rows[0] == rows[1] == rows[2]
        stores[0].close()
        stores[1].forget()
        assert rows_of(stores[1]) == rows[1]
        stores[1].close()
        catalogs = {
            row[0] for row in engine.connection.execute("select database_name from duckdb_databases()").fetchall()
        }
        assert (
            catalogs & {*stores[2]._catalogs} and len([name for name in catalogs if name.startswith("contexts")]) == 1
        )
        with pytest.raises(StoreError, match="cannot open"):
            Store(_outside(folder, tmp_path / "outside"), engine)


def _outside(folder, target):
    shutil.copytree(folder, target)
    return target


def test_search_says_why(store):
    rows = rows_of(store)
    row = next(row for row in rows if row.explainer == "token")
    word = row.label.split("\u201c")[1].split("\u201d")[0]
    for text, kind in ((str(row.feature), "id"), (word, "label"), (word.upper(), "label"), (word, "current")):
        result = search(store, text, "all" if kind in ("id", "label") else kind, 50)
        hit = next(hit for hit in result.hits if hit.feature == row.feature)
        assert hit.kind == kind and hit.why
    assert len({hit.feature for hit in result.hits}) == len(result.hits)
    assert search(store, word, "current", 50).hits[0].times > 0


@pytest.mark.parametrize("keys", [("density", "score"), ("label", "max_act", "low"), ("score", "feature"), ("low",)])
def test_a_table_by_several_columns_is_that_of_sorting_one_after_another(store, keys):
    columns = store.columns
    for signs in itertools.product((False, True), repeat=len(keys)):
        wanted = Filter(sort=tuple(Sort(key, down) for key, down in zip(keys, signs, strict=True)))
        numbers = [columns.sortable(key) * (-1 if down else 1) for key, down in zip(keys, signs, strict=True)]
        expected = np.lexsort([np.arange(columns.n), *numbers[::-1]])
        found = wanted.found(columns)
        assert np.array_equal(found.every(), expected), signs
        for start in range(0, columns.n, 7):
            assert np.array_equal(found.part(start, start + 7), expected[start : start + 7]), signs
            assert found.place(int(expected[start])) == start
        assert found.place(10**6) is None


def test_search_ranks_whole_words_first(store):
    columns = store.columns
    for feature in np.flatnonzero(columns.labelled)[::9].tolist():
        word = columns.labels[feature].split("\u201c")[-1].split("\u201d")[0].split()[0]
        result = search(store, word, "label", 200)
        whole = [
            f" {word.lower()} " in "".join(c if c.isalnum() else " " for c in f" {columns.labels[h.feature].lower()} ")
            for h in result.hits
        ]
        if word.isalnum():
            assert whole == sorted(whole, reverse=True)


def test_a_slip_is_corrected_and_said(store):
    word = max(store.columns.label_words, key=len)
    slip = word[:-2] + word[-1] + word[-2] if word[-1] != word[-2] else word[1:]
    result = search(store, slip, "all", 50)
    if slip not in store.columns.label_words:
        assert corrected(store, slip) is not None and result.hits and "shown are those with" in result.notes[0]


def test_an_empty_result_says_what_is_known(store):
    for kind in KINDS:
        result = search(store, "qqqqqqqqqq zz", kind, 5)
        assert not result.hits and result.notes, kind


def test_what_the_text_holds_of_a_token_is_said(finished):
    with closing(Store(finished / "dictionaries" / "first" / "store")) as store:
        counts = queries.token_occurrences(store, list(store.vocabulary.tokens))
        text = next(
            t for token in sorted(counts, key=counts.get) if len(t := store.vocabulary.shown(token).strip()) > 1
        )
        n = sum(counts[token] for token in store.vocabulary.like(text))
        hits = search(store, text, "next", 5).hits
        assert hits or f"“{text}” occurs {n:,} times" in search(store, text, "next", 5).notes[0]


def test_a_sentence_finds_features_of_its_tokens_by_the_formula(store):
    row = next(row for row in rows_of(store) if row.explainer == "token" and row.score > 0.95)
    word = row.label.split("\u201c")[1].split("\u201d")[0]
    other = store.vocabulary.shown(next(t for t in store.vocabulary.tokens if word not in store.vocabulary.shown(t)))
    result = search(store, f" {word}{other}", "sentence", 200)
    assert row.feature in [hit.feature for hit in result.hits] and "was not run" in result.notes[0]
    [token] = store.vocabulary.split(f" {word}")
    [(times, strong)] = store.cursor().execute(
        "select n_explain + n_test, n_strong from feature_token join feature using (feature) "
        "where feature = ? and token = ? and kind = 'current'", [row.feature, token]
    ).fetchall()  # fmt: skip
    p = times / queries.token_occurrences(store, [token])[token]
    weights, best = sentence_weights(store, [token])
    assert weights[row.feature] == pytest.approx(p * math.log(p / (strong / store.meta["n_tokens"])))
    assert best[row.feature] == (p, token)
    against = contrast(store, f" {word}", other, 200)
    assert row.feature in [hit.feature for hit in against.hits]
    assert row.feature not in [hit.feature for hit in contrast(store, other, f" {word}", 200).hits]
    assert not contrast(store, f" {word}", f" {word}", 200).hits


def test_features_like_one_are_near_it_or_in_its_documents(finished):
    with closing(Store(finished / "dictionaries" / "first" / "store")) as store:
        for number in range(0, store.n_features, 8):
            [feature] = queries.features(store, number, number + 1)
            hits = {hit.feature: hit.why for hit in search(store, str(number), "like", 200).hits}
            assert number not in hits and {other for other, _ in feature.neighbours + feature.coactive} <= set(hits)
            documents = {d for d, _, _ in queries.documents_of_features(store, number).get(number, [])[:10]}
            for other, why in hits.items():
                strong = {d for d in documents if other in {a.feature for a in queries.document(store, d).features}}
                if "documents" in why:
                    assert f"strong in {len(strong)} of its {len(documents)} documents" in why


def test_tokens_of_a_text_spell_it():
    words = Vocabulary({0: b"", 1: b" the", 2: b" th", 3: b"e", 4: b" c", 5: b"at", 6: b"\xc3", 7: b"\xa7", 8: b" cat"})
    assert words.split(" the cat") == [1, 8] and words.split(" thecat\u00e7") == [1, 5, 6, 7]
    assert words.texts([6, 7, 8]) == ["", "\u00e7", " cat"] and words.texts([6, 8]) == ["", "\ufffd cat"]
    assert shared([(1, b"a")]) is not shared([(1, b"b")])


def test_features_that_promote_a_token_are_the_strongest(finished):
    with closing(Store(finished / "dictionaries" / "first" / "store")) as store:
        rows = store.cursor().execute("select token, features, heights from promotion order by token").fetchall()
        assert len(rows) > 300
        by_token = {}
        for token, features, heights in rows:
            by_token[token] = dict(
                zip(np.frombuffer(features, "<u4").tolist(), np.frombuffer(heights, "<f4").tolist(), strict=True)
            )
            falling = list(by_token[token].values())
            assert falling == sorted(falling, reverse=True) and (not falling or falling[-1] > 0)
        for feature in queries.all_features(store):
            for (token, logit), (other, less) in itertools.pairwise(feature.promoted):
                if feature.row.feature in by_token[token] and feature.row.feature in by_token[other] and logit > less:
                    assert by_token[token][feature.row.feature] > by_token[other][feature.row.feature]
        token, logit = max((pair for f in queries.all_features(store) for pair in f.promoted), key=lambda pair: pair[1])
        assert queries.features_promoting(store, [token], 5)[0][1] == token and logit > 0
