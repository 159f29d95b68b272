"""Documents like examples: the similarity, its ranking in DuckDB beside the plain one, going on, and the command."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from fixtures import copy_run, make_text, run_here
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.results.findings import Finding
from sae.apply.selection.vectors import Prototype, jaccard, vectors_in
from sae.apply.text_codes import TextCodes
from sae.errors import DataError
from sae.text.brought import NamedText

D_SAE = 40
vectors = st.lists(st.integers(0, 1000).map(lambda n: n / 8), min_size=5, max_size=5).map(np.array)


@settings(max_examples=100, deadline=None)
@given(vectors, vectors, st.floats(0.1, 10))
def test_jaccard_is_symmetric_bounded_and_free_of_a_common_scale(one, other, scale):
    value = jaccard(one, other)
    assert value == jaccard(other, one) and 0 <= value <= 1 and jaccard(one, one) == 1
    assert jaccard(one * scale, other * scale) == pytest.approx(value, abs=1e-9)
    if one.sum() > 0:
        assert jaccard(one, one * 2) == pytest.approx(0.5)
    if not np.array_equal(one, other):
        assert value < 1


class Reader:
    """Reads drawn codes in place of a model's, and counts what it was asked for."""

    def __init__(self, n, seed=0):
        rng = np.random.default_rng(seed)
        self.z = (rng.exponential(1, (n, D_SAE)) * (rng.random((n, D_SAE)) < 0.3)).astype(np.float32)
        self.n_read = 0

    def read(self, texts):
        numbers = [int(text) for text in texts]
        self.n_read += len(numbers)
        rows, latents = self.z[numbers].nonzero()
        ones = np.ones(len(numbers), np.int64)
        acts = self.z[numbers][rows, latents]
        return TextCodes(D_SAE, ones, ones, rows, position=np.ones_like(rows), latent=latents, act=acts)


def corpus(n):
    return [NamedText(f"d{number}", str(number)) for number in range(n)]


@pytest.mark.parametrize("similarity", ["jaccard", "cosine", "euclid"])
def test_the_ranking_is_the_plain_one(tmp_path, similarity):
    reader = Reader(700)
    p = Prototype(reader.z[3] * 0.5 + reader.z[4] * 0.5, 2)
    plain = {
        "jaccard": lambda z: jaccard(z, p.z),
        "cosine": lambda z: float(z @ p.z) / max(float(np.linalg.norm(z) * np.linalg.norm(p.z)), 1e-30),
        "euclid": lambda z: -float(np.linalg.norm(z - p.z)),
    }[similarity]
    scores = np.array([plain(z.astype(np.float64)) for z in reader.z])
    with vectors_in(tmp_path / "v.duckdb") as stored:
        stored.read(reader, corpus(700), lambda n: None)  # pyright: ignore[reportArgumentType]
        ranked = stored.ranked(p, 30, similarity)
    assert np.allclose([row.score for row in ranked], np.sort(scores)[::-1][:30], atol=1e-5)
    assert {ranked[0].document, ranked[1].document} == {3, 4}
    usual = np.minimum(reader.z, p.z).mean(0)
    for row in ranked[:5]:
        excess = np.minimum(reader.z[row.document], p.z) - usual
        assert row.features[0] == int(excess.argmax()) and row.name == f"d{row.document}"


def test_a_corpus_goes_on_where_it_was_stopped(tmp_path):
    reader = Reader(600)
    path = tmp_path / "v.duckdb"

    def stop(n):
        raise KeyboardInterrupt

    with vectors_in(path) as stored, pytest.raises(KeyboardInterrupt):
        stored.read(reader, corpus(600), stop)  # pyright: ignore[reportArgumentType]
    n_first = reader.n_read
    with vectors_in(path) as stored:
        assert len(stored) == n_first < 600
        stored.read(reader, corpus(600), lambda n: None)  # pyright: ignore[reportArgumentType]
        assert reader.n_read == len(stored) == 600
        found = stored.ranked(Prototype(reader.z[599], 1), 1)
    assert found[0].document == 599 and found[0].score == pytest.approx(1)
    with vectors_in(tmp_path / "w.duckdb") as whole:
        whole.read(reader, corpus(600), lambda n: None)  # pyright: ignore[reportArgumentType]
        assert whole.ranked(Prototype(reader.z[599], 1), 20) == vectors_ranked(path, reader)
        with pytest.raises(DataError, match="allowed are jaccard"):
            whole.ranked(Prototype(reader.z[0], 1), 1, "dice")  # pyright: ignore[reportArgumentType]


def vectors_ranked(path, reader):
    with vectors_in(path) as stored:
        return stored.ranked(Prototype(reader.z[599], 1), 20)


@pytest.fixture(scope="module")
def home(finished, tmp_path_factory):
    home = tmp_path_factory.mktemp("select")
    copy_run(finished, home / "tiny")
    texts = make_text(120, seed=5)
    planted = [f"the sun was happy and the dog was happy {n}" for n in range(12)]
    rows = [*texts[:60], *planted[:8], *texts[60:]]
    (home / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
    (home / "like.txt").write_text("\n".join(planted[8:]), encoding="utf-8")
    return home


def test_planted_documents_are_chosen_and_the_finding_says_why(home):
    arguments = (
        "select",
        home / "tiny/dictionaries/first",
        "--like",
        home / "like.txt",
        "--from",
        home / "corpus.jsonl",
    )
    done = run_here(*arguments, "--share", "0.0625", "--out", home / "out")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(home / "out/selected.parquet").to_pylist()
    assert sorted(row["document"] for row in table) == list(range(60, 68)), table
    assert all(row["text"].startswith("the sun was happy") for row in table)
    assert [row["score"] for row in table] == sorted((row["score"] for row in table), reverse=True)
    finding = Finding.read(home / "tiny/dictionaries/first/findings/selection")
    assert finding.settings["documents"] == 128 and finding.tables[0].rows and len(finding.tables[1].rows) == 8
    first = (home / "out/selected.parquet").read_bytes()
    assert run_here(*arguments, "--share", "0.0625", "--out", home / "out").returncode == 0
    assert (home / "out/selected.parquet").read_bytes() == first


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--share", "0"), "give a share"),
        (("--similarity", "dice"), "allowed are jaccard"),
        (("--contexts", "0"), "at least 1 context"),
        (("--contexts", "2", "--out", "OUT"), "holds vectors made with another"),
        (("--like", "none.txt"), "none.txt"),
    ],
)
def test_one_line_for_bad_settings(home, more, words):
    out = home / "fixed"
    out.mkdir(exist_ok=True)
    (out / "made_of.json").write_text(json.dumps({"contexts": 4}))
    arguments = [
        "select",
        home / "tiny/dictionaries/first",
        "--like",
        home / "like.txt",
        "--from",
        home / "corpus.jsonl",
    ]
    done = run_here(*arguments, "--out", home / "other", *(out if word == "OUT" else word for word in more))
    assert done.returncode != 0 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
