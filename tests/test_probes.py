"""Probes that abstain: the promise about covered classes, what is planted, groups, and the command on a real run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fixtures import WORDS, copy_run, run_here

from feature_store.results.findings import Finding
from sae.apply.probes.abstaining import bounds_of, parts_of, probed, telling_columns
from sae.apply.probes.places import streams_at_the_end
from sae.apply.probes.statements import CITIES, FORMS, cities
from sae.errors import DataError
from sae.foundation.screen import Screen
from sae.pipeline.reading import reader_of
from sae.text.brought import classed_texts


def drawn(n, seed, strength, classes=3, width=8):
    """Rows whose first columns say their class, as strongly as wanted."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    x = rng.normal(size=(n, width)).astype(np.float32)
    x[np.arange(n), labels] += strength
    return x, labels


def names(labels):
    return [str(label) for label in labels]


def test_the_right_class_stays_possible_as_often_as_promised_whatever_the_probe_is_worth():
    for strength in (0.0, 1.0, 4.0):
        covered, answered = [], []
        for seed in range(30):
            x, labels = drawn(600, seed, strength)
            parts = parts_of(names(labels), [str(n) for n in range(600)], seed)
            result = probed(x, labels, parts, alpha=0.1)
            covered.append(result.covered.value)
            answered.append(result.answered.value)
        # 1 - alpha, and 1 / (n + 1) more at most; bounds vary with some 50 texts of a class
        assert 0.885 < np.mean(covered) < 0.935, (strength, np.mean(covered))
        if strength == 0:
            assert np.mean(answered) < 0.15
        if strength == 4:
            assert np.mean(answered) > 0.85 and result.right_of_answered.value > 0.93


def test_too_few_texts_to_promise_anything_leave_every_class_possible():
    p = np.array([[0.9, 0.1]] * 4)
    assert bounds_of(p, np.zeros(4, int), alpha=0.1).tolist() == [1.0, 1.0]
    assert bounds_of(p, np.zeros(4, int), alpha=0.25)[0] == pytest.approx(0.1)


def test_what_is_planted_is_found_and_shuffled_labels_tell_nothing():
    x, labels = drawn(400, 1, 5.0, classes=2, width=50)
    x = np.maximum(x, 0)
    assert set(telling_columns(x, labels, 2)) == {0, 1}
    parts = parts_of(names(labels), [str(n) for n in range(400)], 0)
    result = probed(x[:, [0, 1]], labels, parts, alpha=0.1)
    assert result.auc > 0.97 and result.accuracy.low > 0.85
    nulls = []
    for seed in range(20):
        shuffled = np.random.default_rng(seed).permutation(labels)
        nulls.append(probed(x, shuffled, parts, alpha=0.1).auc)
    assert np.mean(nulls) == pytest.approx(0.5, abs=0.04)


def test_a_group_is_in_one_part_and_small_classes_are_refused():
    labels, groups = ["a", "b"] * 60, [str(n // 4) for n in range(120)]
    parts = parts_of(labels, groups, 3)
    of = [{groups[n] for n in part} for part in parts]
    assert not of[0] & of[1] and not of[0] & of[2] and not of[1] & of[2] and sum(map(len, parts)) == 120
    with pytest.raises(DataError, match=r"class 'b' has 0 texts in the part to fit|class 'b' has \d texts"):
        parts_of(["a"] * 118 + ["b"] * 2, [str(n) for n in range(120)], 0)


def test_statements_are_true_false_or_about_nothing():
    texts = cities(0)
    assert len(texts.texts) == len(set(texts.texts)) == 3 * len(FORMS) * len(CITIES)
    for text, label, city in zip(*texts, strict=True):
        told = next((name for name in CITIES if f" {name} " in f" {text}"), None)
        country = text.rpartition(" in ")[2].rstrip(".") if "is" in text else None
        assert (told == city) == (label != "neither") and (told is None) == (label == "neither")
        if country and label != "neither":
            assert (CITIES[city] == country) == (label == "true")
    assert cities(0) == texts != cities(1)


def test_streams_at_the_end_are_those_of_each_text_alone(finished):
    reader = reader_of(finished / "dictionaries" / "first", None, Screen())
    texts = ["the river of the state", "music", "a longer text about a train and a model of it"]
    together = streams_at_the_end(reader.lm, texts, ctx_len=16, n_positions=3)
    assert together.shape == (reader.lm.n_layers, 3, 3, reader.lm.d_model)
    for number, text in enumerate(texts):
        alone = streams_at_the_end(reader.lm, [text], ctx_len=16, n_positions=3)[:, :, 0]
        np.testing.assert_allclose(together[:, :, number], alone, atol=2e-2, rtol=2e-2)


def write(path, texts):
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    return path


def test_the_command_tells_classes_apart(finished, tmp_path):
    run = copy_run(finished, tmp_path / "run")
    folder = run / "dictionaries" / "first"
    rows = []
    for number in range(60):
        plain = " ".join(np.random.default_rng(number).choice(WORDS, 6))
        rows += [
            {"text": f"{plain} {WORDS[0]}", "label": True, "group": number},
            {"text": f"{plain} {WORDS[5]}", "label": False, "group": number},
        ]
    file = write(tmp_path / "texts.jsonl", rows)
    done = run_here("probe", folder, "--texts", file, "--name", "p", "--positions", "2")
    assert done.returncode == 0, done.stderr
    finding = Finding.read(folder / "findings" / "p")
    figures = {f.name: f.value for f in finding.figures}
    assert figures["AUC"] > 0.9 and figures["accuracy"] > 0.8 and finding.settings["n_texts"] == 120
    tables = {t.title: t for t in finding.tables}
    assert len(tables["AUC of a probe on the activations, by layer and token"].rows) == 3
    assert "Features that tell" in done.stdout and "abstain" in finding.summary


def test_wrong_input_is_one_line(finished, tmp_path):
    folder = finished / "dictionaries" / "first"
    bad = write(tmp_path / "bad.jsonl", [{"text": "a", "label": "x"}, {"text": "b"}])
    with pytest.raises(DataError, match="line 2 is not an object"):
        classed_texts(bad)
    one = write(tmp_path / "one.jsonl", [{"text": f"t {n}", "label": "x"} for n in range(5)])
    for arguments, said in (
        (("--texts", one), "two or more classes"),
        (("--alpha", "0.7"), "--alpha 0.7"),
        (("--k", "0"), "--k 0"),
    ):
        done = run_here("probe", folder, *arguments)
        assert done.returncode != 0 and said in done.stderr, done.stderr
