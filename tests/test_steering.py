"""Steering at equal disturbance: lengths that are asked for, a judge that knows words alone, planted directions, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fixtures import copy_run, run_here

from feature_store.results.findings import Finding
from sae.apply.concept import best_feature
from sae.apply.edit import EditPlan, Sampling
from sae.apply.steering.behaviour import WordJudge, Written, judged, written
from sae.apply.steering.directions import CONTROL, FEATURE, MEANS
from sae.apply.steering.disturbance import Prompts, matched, plan_of
from sae.apply.steering.report import SteerSettings, _halves
from sae.apply.steering.sentences import FORMS, WORDS, concept_sentences
from sae.errors import ConfigError, DataError
from sae.foundation.screen import Screen
from sae.pipeline.reading import reader_of
from sae.text.brought import ClassedTexts


@pytest.fixture(scope="module")
def reader(finished):
    return reader_of(finished / "dictionaries" / "first", None, Screen(quiet=True))


def test_a_direction_gets_the_length_that_disturbs_by_as_much_as_is_wanted(reader):
    prompts = Prompts(reader, ["the cat sat on", "a dog and the"])
    assert prompts.disturbance(EditPlan(())) == pytest.approx(0, abs=1e-6)
    direction = torch.randn(reader.sae.d_out, generator=torch.Generator().manual_seed(0))
    lengths = [matched(prompts, direction, wanted) for wanted in (0.001, 0.005)]
    for wanted, found in zip((0.001, 0.005), lengths, strict=True):
        assert found.disturbance == pytest.approx(wanted, rel=0.1)
        assert prompts.disturbance(plan_of(3 * direction, found.amount)) == pytest.approx(found.disturbance, rel=1e-3)
    assert lengths[0].amount < lengths[1].amount
    nothing = matched(prompts, torch.zeros(reader.sae.d_out), 0.1)  # never disturbs
    assert nothing.disturbance == pytest.approx(0, abs=1e-6) and nothing.amount > prompts.norm
    with pytest.raises(DataError, match="two tokens"):
        Prompts(reader, ["a"])


def test_the_judge_knows_words_and_nothing_else():
    sentences = concept_sentences()
    assert len(sentences.texts) == len(WORDS) * 12 * len(FORMS)
    judge = WordJudge(sentences.texts, sentences.labels)
    chances = judge.chances(["the piano and the orchestra", "a storm with thunder"], "music")
    assert chances[0] > 0.8 > 0.2 > chances[1]
    texts = ["the piano and the orchestra", "a bank"]
    plain = Written(texts, texts, np.array([2.0, 2.0]))
    fluent = judged(plain, plain, judge, "music")
    worse = judged(plain._replace(losses=np.array([4.0, 4.0])), plain, judge, "music")
    assert fluent.fluency.value == 1 and worse.fluency.value == pytest.approx(np.exp(-2))
    assert worse.concept == fluent.concept and worse.score.value < fluent.score.value
    assert judged(plain, plain, judge, "money").concept.value < fluent.concept.value


def test_what_is_written_follows_the_edits_and_the_seed(reader):
    sampling = Sampling(6, 1.0, 3, 5)
    plain = written(reader, ["the cat", "a dog"], EditPlan(()), sampling)
    assert len(plain.texts) == len(plain.losses) == 6 and plain.texts[0].startswith("the cat")
    assert written(reader, ["the cat", "a dog"], EditPlan(()), sampling).texts == plain.texts
    direction = reader.sae.W_dec[3].detach()
    assert written(reader, ["the cat", "a dog"], plan_of(direction, 50.0), sampling).texts != plain.texts


def test_the_best_feature_is_the_planted_one():
    rng = np.random.default_rng(0)
    positive, negative = rng.random((40, 30)), rng.random((40, 30))
    positive[:, 11] += 2
    negative[:, 4] += 3  # speaks against the concept
    assert best_feature(positive, negative) == 11


def test_groups_are_in_one_half():
    halves = _halves(concept_sentences(), seed=1)
    assert not set(halves.choose.groups) & set(halves.test.groups)
    assert len(halves.choose.texts) + len(halves.test.texts) == len(concept_sentences().texts)
    with pytest.raises(DataError, match="two or more classes"):
        _halves(ClassedTexts(["a b"] * 20, ["x"] * 20, [str(n) for n in range(20)]), seed=0)
    with pytest.raises(DataError, match="wanted are 8 in each"):
        _halves(ClassedTexts(["a b"] * 20, ["x"] * 16 + ["y"] * 4, [str(n) for n in range(20)]), seed=0)


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="a disturbance above 0"):
        SteerSettings(kl=0).check()


def test_the_command_compares_directions(hidden, tmp_path):
    run = copy_run(hidden, tmp_path / "tiny")
    folder = run / "dictionaries" / "first"
    rng = np.random.default_rng(0)
    words = {"cats": ["cat", "mat", "sat"], "dogs": ["dog", "ran", "red"]}
    rows = [
        {"text": " ".join(["the", *rng.choice(words[label], 6)]), "label": label} for label in words for _ in range(24)
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    done = run_here("steer", folder, "--texts", path, "--samples", "2", "--tokens", "6", "--name", "s", "--kl", "0.05")
    assert done.returncode == 0, done.stderr
    finding = Finding.read(folder / "findings" / "s")
    assert finding.summary in done.stdout
    rows_of = finding.tables[0].rows
    assert len(rows_of) == 6 and [row[1] for row in rows_of[:3]] == [FEATURE, CONTROL, MEANS]
    assert [c.name for c in finding.tables[0].columns[-4:-1]] == [
        "in the null space",
        "KL of the rest",
        "KL of what is there",
    ]
    for row in rows_of:  # of a hidden layer: what is in the null space moves nothing
        assert 0 <= row[-4] <= 1 and 0 <= row[3] <= 1 and row[-2] < 1e-3  # pyright: ignore[reportOperatorIssue]
        assert row[-3] == pytest.approx(row[5], rel=0.05) and row[-1] == ""
    figures = {f.name: f.value for f in finding.figures}
    assert figures[f"detects, {FEATURE}"] > 0.9  # pyright: ignore[reportOperatorIssue]
    assert run_here("steer", folder, "--texts", tmp_path / "none.jsonl").returncode != 0
