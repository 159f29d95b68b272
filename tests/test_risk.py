"""Scores foretold from latents: planted ones are found, noise is not, and the command on a real run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fixtures import WORDS, copy_run, make_text, run_here
from scipy.sparse import csr_array
from sklearn.cross_decomposition import PLSRegression

from feature_store.results.findings import Finding
from sae.apply.risk.foretelling import _fit, foretell
from sae.errors import DataError


def codes(n, seed, d_sae=60):
    rng = np.random.default_rng(seed)
    return rng.exponential(1, (n, d_sae)) * (rng.random((n, d_sae)) < 0.4)


def test_a_planted_score_is_foretold_by_its_latents():
    x = codes(200, 1)
    score = 2 * x[:, 7] - 3 * x[:, 20] + np.random.default_rng(2).normal(0, 0.5, 200)
    risk = foretell(csr_array(x), score, n_latents=2)
    assert sorted(risk.latents) == [7, 20] and risk.r2.low > 0.8 and risk.p == pytest.approx(1 / 21)
    weight = dict(zip(risk.latents, risk.weights, strict=True))
    assert weight[7] == pytest.approx(2, rel=0.25) and weight[20] == pytest.approx(-3, rel=0.25)
    assert max(risk.null) < 0.2 and np.corrcoef(risk.predicted, score)[0, 1] > 0.9


def test_noise_is_not_foretold():
    values, ps = [], []
    for seed in range(8):
        risk = foretell(csr_array(codes(120, seed)), np.random.default_rng(100 + seed).normal(size=120), seed=seed)
        values.append(risk.r2.value)
        ps.append(risk.p)
    assert np.mean(values) < 0.05 and sum(p <= 0.05 for p in ps) <= 2


def test_weights_of_fewer_components_are_those_of_fits_with_fewer():
    x, rng = codes(80, 3), np.random.default_rng(0)
    y = x[:, 3] + rng.normal(size=80)
    together = _fit(x, y, 5)
    for a in (1, 3, 5):
        assert np.allclose(together[:, a - 1], PLSRegression(n_components=a).fit(x, y).coef_[0], atol=1e-8)


def test_what_cannot_be_foretold_is_refused():
    for n, score, words in ((10, np.arange(10.0), "at least 40"), (50, np.ones(50), "all scores are the same")):
        with pytest.raises(DataError, match=words):
            foretell(csr_array(codes(n, 0)), score)
    with pytest.raises(DataError, match="no latent fires"):
        foretell(csr_array(np.zeros((50, 3))), np.arange(50.0))


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    home = tmp_path_factory.mktemp("risk")
    copy_run(finished, home / "tiny")
    texts = list(dict.fromkeys(make_text(160, seed=9)))[:100]
    rows = [{"text": text, "score": text.split()[:25].count(WORDS[5])} for text in texts]
    (home / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (home / "wrong.jsonl").write_text('{"text": "a b", "score": "high"}\n', encoding="utf-8")
    return home


def test_the_command_foretells_a_score_and_the_loss(run):
    folder = run / "tiny/dictionaries/first"
    done = run_here("risk", folder, "--scores", run / "scores.jsonl", "--name", "happy", "--remove", "2")
    assert done.returncode == 0, done.stderr
    happy = Finding.read(folder / "findings/happy")
    figures = {figure.name: figure for figure in happy.figures}
    assert figures["R2"].value > 0.3 and figures["R2 of scores dealt out anew"].value < 0.1  # pyright: ignore
    done = run_here("risk", folder, "--texts", run / "scores.jsonl", "--remove", "0")
    assert done.returncode == 0, done.stderr
    loss = Finding.read(folder / "findings/risk")
    assert loss.settings["score"] == "loss" and len(loss.tables[2].rows) == 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "one of them"),
        (("--texts", "a.txt", "--scores", "b.jsonl"), "one of them"),
        (("--scores", "WRONG"), 'line 1 is not an object with a "text" and a finite "score"'),
    ],
)
def test_one_line_for_bad_input(run, arguments, words):
    arguments = [run / "wrong.jsonl" if word == "WRONG" else word for word in arguments]
    done = run_here("risk", run / "tiny/dictionaries/first", *arguments)
    assert done.returncode != 0 and words in done.stderr and "Traceback" not in done.stderr
