"""Concepts: groups of features that belong together, and features that tell given texts apart."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from fixtures import EACH, KINDS, copy_run, rows_of
from scipy.sparse import csr_matrix

from feature_store.queries import concepts
from sae.apply.concept import LEAST_TEXTS, learn
from sae.errors import ConfigError, DataError
from sae.interpret.concepts import _communities, affinity
from sae.text.brought import texts_of


def test_groups_are_stored_twice_and_add_up(planted):
    folder, store, summary, _ = planted
    found = concepts(store)
    whole = [c for c in found if c.parent is None]
    assert whole and summary.concepts == len(whole)
    members = [f for c in whole for f in c.features]
    assert len(members) == len(set(members))
    assert summary.concepts_second_level == len(found) - len(whole)
    weights = affinity(store, [row.feature for row in rows_of(store) if row.n_fired])
    labels = {row.feature: row.label or "" for row in rows_of(store)}
    for part in found:
        inside = float(weights[part.features][:, part.features].sum())
        assert part.purity == pytest.approx(inside / float(weights[part.features].sum())) and inside > 0
        named = [f for f in part.features if any(word in labels[f] for word in part.name.split(", "))]
        assert 0 < part.coverage <= len(named) / len(part.features) and len(part.features) >= 2 and part.name
        if part.parent is not None:
            assert set(part.features) < set(found[part.parent].features)
    held = json.loads((folder / "concepts.json").read_text())
    assert [c["name"] for c in held["concepts"]] == [c.name for c in found]
    assert held["features_grouped"] == len(members)
    table = pq.read_table(folder / "concepts.parquet").to_pylist()
    assert [row["features"] for row in table] == [c.features for c in found]


def test_features_that_fire_together_are_in_one_group(planted):
    """The six number features fire on the same tokens."""
    _, store, _, _ = planted
    first = KINDS.index("format") * EACH
    numbers = set(range(first, first + EACH))
    assert any(numbers <= set(c.features) for c in concepts(store) if c.parent is None)


def test_communities_of_planted_blocks():
    rng = np.random.default_rng(0)
    weights = (rng.random((40, 40)) < 0.02) * 0.1
    for block in range(4):
        weights[block * 10 : block * 10 + 10, block * 10 : block * 10 + 10] = 1
    graph = csr_matrix(np.maximum(weights, weights.T))
    found = _communities(graph, list(range(40)), 0)
    assert sorted(map(tuple, found)) == [tuple(range(b * 10, b * 10 + 10)) for b in range(4)]
    assert found == _communities(graph, list(range(40)), 0)
    assert _communities(graph, list(range(5, 25)), 0) == [list(range(10, 20)), list(range(5, 10)), list(range(20, 25))]
    assert _communities(csr_matrix((40, 40)), list(range(40)), 0) == []


def maxima(n, d_sae=50, rise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.exponential(1.0, (n, d_sae)) * (rng.random((n, d_sae)) < 0.5)
    x[:, 7] += rise
    x[:, 9] += rise / 2
    return x.astype(np.float32)


@pytest.mark.parametrize("method", ["difference", "top", "tree"])
def test_a_planted_concept_is_found_and_tested_on_other_texts(method):
    found = learn("x", maxima(200, rise=6, seed=1), maxima(200, seed=2), method)
    assert 7 in found.features and found.features[0] == 7
    assert found.balanced_accuracy.value > 0.9 and found.balanced_accuracy.low > 0.8
    assert found.precision.value > 0.85 and found.recall.value > 0.85
    assert found.n_positive == (100, 100) and found == learn(
        "x", maxima(200, rise=6, seed=1), maxima(200, seed=2), method
    )
    assert json.loads(json.dumps(found.as_json()))["recall"]["value"] == found.recall.value


@pytest.mark.parametrize("method", ["difference", "top", "tree"])
def test_texts_that_do_not_differ_score_at_chance(method):
    inside = 0
    for seed in range(20):
        found = learn("x", maxima(60, seed=2 * seed), maxima(60, seed=2 * seed + 1), method, seed=seed)
        inside += found.balanced_accuracy.low <= 0.5 <= found.balanced_accuracy.high
        assert found.chosen_balanced_accuracy > 0.5  # where it was chosen it looks better than it is
    assert inside >= 17


def test_too_few_texts_and_wrong_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=f"at least {LEAST_TEXTS}"):
        learn("x", maxima(5), maxima(50))
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert texts_of(tmp_path / "a.txt", tmp_path / "a.txt", None) == (["one", "two"], ["one", "two"])
    with pytest.raises(ConfigError, match="--labelled"):
        texts_of(tmp_path / "a.txt", None, None)
    with pytest.raises(ConfigError, match="no such file"):
        texts_of(tmp_path / "b.txt", tmp_path / "a.txt", None)
    (tmp_path / "c.jsonl").write_text('{"text": "yes", "label": true}\n{"text": "no", "label": false}\n')
    assert texts_of(None, None, tmp_path / "c.jsonl") == (["yes"], ["no"])
    (tmp_path / "c.jsonl").write_text('{"text": "yes"}\n')
    with pytest.raises(DataError, match="line 1"):
        texts_of(None, None, tmp_path / "c.jsonl")


def test_texts_that_are_all_alike_give_weights_of_their_size():
    positive, negative = np.tile([[2.0, 0.0, 1.0]], (12, 1)), np.tile([[0.0, 4.0, 1.0]], (12, 1))
    concept = learn("x", positive, negative, k=2)
    assert concept.balanced_accuracy.value == 1 and np.abs(concept.weights).max() < 1e4
    noisy = learn("x", positive + np.random.default_rng(0).random(positive.shape), negative, k=2)
    assert noisy.balanced_accuracy.value == 1 and np.isfinite(noisy.weights).all()


def test_texts_are_utf_8_whatever_the_locale(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    (tmp_path / "a.txt").write_bytes("\ufeffcaf\u00e9\r\n\nline\u2028separator\n".encode())
    (tmp_path / "latin.txt").write_bytes(b"one\ncaf\xe9\n")
    a = tmp_path / "a.txt"
    assert texts_of(a, a, None).positive == ["caf\u00e9", "line\u2028separator"]
    with pytest.raises(DataError, match=r"latin\.txt, line 2: byte 0xe9 is not UTF-8"):
        texts_of(a, tmp_path / "latin.txt", None)
    (tmp_path / "half.jsonl").write_text('{"text": "a \\ud800", "label": true}\n{"text": "b", "label": false}')
    assert texts_of(None, None, tmp_path / "half.jsonl").positive == ["a \ufffd"]


def test_the_command_learns_on_a_real_run(finished, tmp_path, capsys):
    """Texts with and without a word, on the tiny model's dictionary."""

    from sae.cli import main

    run = tmp_path / "run"
    copy_run(finished, run)
    words = ["girl", "dog", "tree", "ball", "house", "sun", "park", "mom", "toy", "red"]
    for name, word in (("a", "happy"), ("b", "went")):
        (tmp_path / f"{name}.txt").write_text(
            "\n".join(f"The {w} was {word} and the {v} too." for w in words for v in words[:3])
        )
    folder = run / "dictionaries" / "first"
    done = main(["concept", "add", str(folder), "--name", "word", "--positive", str(tmp_path / "a.txt"),
                 "--negative", str(tmp_path / "b.txt")])  # fmt: skip
    assert done == 0 and "balanced accuracy" in capsys.readouterr().out
    held = json.loads((folder / "concepts_by_example.json").read_text())["word"]
    assert held["balanced_accuracy"]["value"] > 0.8 and held["n_positive"] == [15, 15]
