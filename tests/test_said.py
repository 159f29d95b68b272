"""What people said becomes explanations with the same scores as others."""

from __future__ import annotations

from contextlib import closing

import pytest
from fixtures import copy_run, explanations, rows_of, run_here

from feature_store.dictionary_files import DictionaryCard
from feature_store.people.database import People
from feature_store.people.entry import Place, checked
from feature_store.store import Store
from sae.errors import ArtefactError
from sae.interpret.said import texts_said


@pytest.fixture
def run(finished, tmp_path):
    return copy_run(finished, tmp_path / "run")


@pytest.fixture
def people(run, tmp_path):
    opened = People(tmp_path / "people.sqlite", create=True)
    yield opened
    opened.close()


def read(run):
    with closing(Store(run / "dictionaries" / "first" / "store")) as store:
        return {row.feature: explanations(store, row.feature) for row in rows_of(store)}


def test_a_quoted_token_has_the_scores_of_the_same_rule_and_others_wait_for_a_judge(run, people, tmp_path, judges):
    before = read(run)
    [feature, text] = next(
        (f, e.text) for f, found in before.items() for e in found if e.explainer == "token" and e.text.count("“") == 1
    )
    place = Place("tiny.first", DictionaryCard.read(run / "dictionaries" / "first").weights_sha256, feature)
    people.write("ada", place, checked("label", "", f"I think {text.upper()}"))
    people.write("bob", place, checked("label", "", "no quotation here, “zzzz” is no token"))
    people.write("bob", place._replace(weights="0" * 64), checked("label", "", "of another dictionary"))

    done = run_here("interpret", run / "dictionaries" / "first", "--people", people.path)
    assert done.returncode == 0, done.stderr
    found = {e.text: e for e in read(run)[feature]}
    ours, theirs = found[f"I think {text.upper()}"], next(e for e in before[feature] if e.explainer == "token")
    rule = lambda e: [s for s in e.scores if s.scorer == "rule"]  # noqa: E731
    assert ours.explainer == "human" and rule(ours) and rule(ours) == rule(theirs)
    assert found["no quotation here, “zzzz” is no token"].scores == [] and "of another dictionary" not in found
    others = {f: e for f, e in read(run).items() if f != feature}
    assert all(e.text == b.text for f in others for e, b in zip(others[f], before[f], strict=True))

    judge = judges(lambda system, data, schema: '{"matches": [true, true, true, true, true]}')
    run_here(
        "interpret", run / "dictionaries" / "first", "--people", people.path, "--features", str(feature),
        "--judge", judge.url, "--scorers", "detection", "--explainers", "token",
    )  # fmt: skip
    judged = {e.text: e for e in read(run)[feature]}
    for said in ("no quotation here, “zzzz” is no token", f"I think {text.upper()}"):
        assert judged[said].explainer == "human" and not judged[said].chosen
        assert "detection" in {s.scorer for s in judged[said].scores}


def test_a_file_that_is_missing_is_told_of(tmp_path):
    with pytest.raises(ArtefactError, match="no such file"):
        texts_said(tmp_path / "none.sqlite", "0" * 64)
