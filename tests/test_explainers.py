"""Explainers and model-free scorers on text with planted triggers; random features score at chance."""

from __future__ import annotations

import json
import pickle
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fixtures import EACH, KINDS, RANDOM, SILENT, explanations, feature_scores, no_model, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.queries import interpretation
from feature_store.store import Store
from sae.errors import LostProcess
from sae.foundation.distributed import Processes
from sae.interpret.evidence import SPLIT_ID, Counts, Evidence, Strong, prefixes
from sae.interpret.explainer import best_of, best_sums, joined
from sae.interpret.explainers import EXPLAINERS
from sae.interpret.explainers.keyphrase import log_odds
from sae.interpret.explainers.prefix import Prefix
from sae.interpret.explanation_table import rule_interval
from sae.interpret.helpers import helped, processes_for
from sae.interpret.interpret import InterpretConfig, interpret
from sae.interpret.scorers import SCORERS


def planted_kinds():
    return [
        (f, "token" if kind == "two words" else kind) for f in range(len(KINDS) * EACH) for kind in [KINDS[f // EACH]]
    ]


def scores_of(store, feature):
    chosen = next(e for e in explanations(store, feature) if e.chosen)
    return {(s.scorer, s.metric): s for s in (*chosen.scores, *feature_scores(store, feature))}


def test_planted_triggers_get_the_right_kind_of_label(planted):
    _, store, _, families = planted
    rows = rows_of(store)
    wrong = {f: (kind, rows[f].explainer, rows[f].label) for f, kind in planted_kinds() if rows[f].explainer != kind}
    assert len(wrong) <= 0.05 * len(KINDS) * EACH, wrong
    right = [f for f, _ in planted_kinds() if f not in wrong]
    assert min(rows[f].score for f in right) > 0.95
    prefix = KINDS.index("prefix") * EACH
    assert all(families[i][:2] in rows[prefix + i].label for i in range(EACH))
    assert all(rows[f].label.count("\u201c") == 2 for f, _ in planted_kinds() if KINDS[f // EACH] == "two words")


def test_planted_labels_beat_the_shuffled_null(planted):
    _, store, summary, _ = planted
    for f, _ in planted_kinds():
        found = scores_of(store, f)
        confidence = found["confidence", "confidence"]
        assert confidence.value > 0.9 and confidence.low > 0.5 and confidence.baseline < 0.75
        assert found["confidence", "null_reached"].value == 0
    assert 0.6 < summary.share_beating_null < 1  # 20 features of 74 fire at random


def test_random_features_score_at_chance(planted):
    _, store, _, _ = planted
    inside, values = Counter(), []
    for f in range(SILENT - RANDOM, SILENT):
        found = scores_of(store, f)
        for key in (("rule", "balanced_accuracy"), ("confidence", "confidence"), ("ngram", "auc"),
                    ("token_lookup", "correlation"), ("coherence", "cosine_gain")):  # fmt: skip
            score = found[key]
            inside[key] += score.low <= score.chance <= score.high
        values.append(found["rule", "balanced_accuracy"].value)
    assert abs(np.mean(values) - 0.5) < 0.02
    assert all(inside[key] >= 0.85 * RANDOM for key in inside), inside


def test_lookup_and_ngrams_find_what_tokens_say(planted):
    _, store, _, _ = planted
    ngrams = []
    for f, kind in planted_kinds():
        found = scores_of(store, f)
        if KINDS[f // EACH] in ("token", "bigram"):
            ngrams.append(found["ngram", "auc"].value)
        if kind == "token":
            assert found["token_lookup", "correlation"].value > 0.9
            assert found["coherence", "cosine_gain"].value > 0
        if kind == "position":
            assert found["token_lookup", "correlation"].value < 0.2
    assert np.mean(ngrams) > 0.9


def test_silent_features_get_no_label(planted):
    _, store, summary, _ = planted
    row = rows_of(store)[SILENT]
    assert row.label is None and row.n_fired == 0 and feature_scores(store, SILENT) == []
    assert summary.features_alive == SILENT


def test_output_rule_uses_the_promoted_tokens(planted):
    _, store, _, _ = planted
    promoted = EACH  # the first feature of the second kind
    output = next(e for e in explanations(store, promoted) if e.explainer == "output")
    assert next(s for s in output.scores if s.metric == "balanced_accuracy").value > 0.9


def test_every_explainer_and_scorer_is_stored_with_its_protocol(planted):
    _, store, _, _ = planted
    rows = interpretation(store)
    assert {row.explainer for row in rows.explanations} == set(EXPLAINERS) - {"human"}
    assert {row.score.scorer for row in rows.scores} == {name for name, s in SCORERS.items() if s.by_default} | {"rule"}
    for f in range(SILENT):
        for explanation in explanations(store, f):
            score = next(s for s in explanation.scores if s.metric == "balanced_accuracy")
            assert score.scorer == "rule" and score.split == SPLIT_ID and score.n_pos > 0 and score.n_neg > 0
            assert score.low <= score.value <= score.high and score.n_failed == 0 and score.judge is None


def test_the_same_seed_gives_the_same_scores(planted, tmp_path):
    import shutil

    folder, store, _, _ = planted
    shutil.copytree(folder, tmp_path / "again")
    interpret(tmp_path / "again", InterpretConfig(), no_model)
    assert interpretation(Store(tmp_path / "again" / "store")) == interpretation(store)
    assert Store(tmp_path / "again" / "store").pointer["contexts"] == store.pointer["contexts"]


class Threads(Processes):
    """Processes of a run, as threads of this one."""

    def __init__(self, rank, size, meeting, board):
        super().__init__(rank, size)
        self._meeting, self._board = meeting, board

    def all_gather_objects(self, value):
        self._board[self.rank] = pickle.dumps(value)
        self._meeting.wait()
        found = [pickle.loads(held) for held in self._board]
        self._meeting.wait()
        return found

    def on_first(self, work):
        return self.all_gather_objects(work() if self.is_first else None)[0]


@pytest.mark.parametrize("n", [2, 3])
def test_several_processes_make_what_one_makes(planted, tmp_path, n):
    import shutil

    folder, store, summary, _ = planted
    shutil.copytree(folder, tmp_path / "shared")
    meeting, board = threading.Barrier(n, timeout=120), [b""] * n

    def of(rank):
        several = Threads(rank, n, meeting, board)
        return interpret(tmp_path / "shared", InterpretConfig(), no_model, processes=several)

    with ThreadPoolExecutor(n) as pool:
        assert list(pool.map(of, range(n))) == [summary] * n
    shared = interpretation(Store(tmp_path / "shared" / "store"))
    alone = interpretation(store)
    for table in ("explanations", "scores", "labels"):
        assert sorted(getattr(shared, table), key=repr) == sorted(getattr(alone, table), key=repr), table
    assert (tmp_path / "shared" / "concepts.json").read_bytes() == (folder / "concepts.json").read_bytes()


def test_helpers_publish_the_bits_of_one_process(planted, tmp_path):
    import shutil

    folder, store, summary, _ = planted
    shutil.copytree(folder, tmp_path / "helped")
    with helped(tmp_path / "helped", InterpretConfig(), 2) as processes:
        assert interpret(tmp_path / "helped", InterpretConfig(), no_model, processes=processes) == summary
    assert Store(tmp_path / "helped" / "store").pointer == store.pointer


def test_a_lost_helper_is_said(planted, tmp_path):
    import shutil

    shutil.copytree(planted[0], tmp_path / "helped")
    with (
        pytest.raises(LostProcess, match="another process"),
        helped(tmp_path / "helped", InterpretConfig(explainers=("token",)), 2) as processes,
    ):
        for _ in range(2):  # the other process exchanges what it has, and has left after its end
            interpret(tmp_path / "helped", InterpretConfig(explainers=("token",)), no_model, processes=processes)


def test_helpers_are_for_many_features_and_several_cores(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 6)
    assert [processes_for(InterpretConfig(), n) for n in (0, 1023, 4096, 1 << 20)] == [1, 1, 4, 6]
    assert processes_for(InterpretConfig(scorers=("intervention",)), 4096) == 1


def test_a_range_of_features_leaves_the_others_as_they_are(planted, tmp_path):
    import shutil

    folder, store, _, _ = planted
    shutil.copytree(folder, tmp_path / "part")
    only_tokens = InterpretConfig(explainers=("token",), scorers=())
    interpret(tmp_path / "part", only_tokens, no_model, features=range(3, 5))
    part = Store(tmp_path / "part" / "store")
    for f in range(SILENT):
        if f in (3, 4):
            assert {e.explainer for e in explanations(part, f)} == {"token"} and feature_scores(part, f) == []
        else:
            assert explanations(part, f) == explanations(store, f)
            assert feature_scores(part, f) == feature_scores(store, f)


def test_labels_are_made_and_tested_on_different_documents(planted):
    from sae.interpret.evidence import Evidence

    _, store, _, _ = planted
    evidence = Evidence(store)
    for f in range(0, SILENT, 5):
        explain, test = evidence.windows(f)
        assert explain and test
        assert not {e.document for e in explain} & {e.document for e in test}


def test_rule_intervals_hold_when_firings_cluster_in_documents():
    """Recall differs from document to document; each holds 1 to 20 strong firings; documents are the trials."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(1000):
        n = rng.integers(1, 21, 30)
        rates = rng.beta(4, 2, 30)
        hits = rng.binomial(n, rates)
        counts = Counts(int(hits.sum()), int(n.sum()), 0, 100_000)
        _, low, high = rule_interval(counts, 30, 500)
        inside += low <= (4 / 6 + 1) / 2 <= high
    assert inside >= 930


def test_rules_are_stored_so_that_they_can_be_tested_again(planted):
    _, store, _, _ = planted
    for row in interpretation(store).explanations:
        items = json.loads(row.rule)
        assert items
        if row.explainer == "token":
            assert all(item in row.text for item in items)


def test_log_odds_prefer_what_random_text_lacks():
    scores = log_odds(Counter(rare=8, common=9), 10, Counter(common=90), 100)
    assert scores["rare"] > 2 and abs(scores["common"]) < 1


def test_a_rule_that_matches_everything_has_every_hit_though_few_tokens_are_counted():
    """The store keeps a feature's most frequent tokens; a rule of all tokens cannot have more false alarms than silent ones."""
    part = Strong(n_strong=60, n_tokens=100)
    assert part.counts(25, 100) == Counts(60, 60, 40, 40)
    assert part.counts(25, 70) == Counts(30, 60, 40, 40)
    assert part.counts(25, 30) == Counts(25, 60, 5, 40)
    assert part.counts(30, 20).false == 0


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.dictionaries(st.text("abc", max_size=3), st.tuples(st.integers(0, 40), st.integers(0, 60)), max_size=12),
    st.integers(0, 60),
    st.integers(0, 300),
)
def test_sums_that_add_up_choose_what_counting_one_by_one_chooses(sums, n_strong, n_silent):
    part = Strong(n_strong, n_strong + n_silent)

    def counted(texts):
        return part.counts(sum(sums[t][0] for t in texts), sum(sums[t][1] for t in texts))

    assert best_sums(sums, part) == best_of(sums, counted)


def test_beginnings_are_counted_like_the_tokens_that_have_them(planted):
    _, store, *_ = planted
    evidence, tried = Evidence(store), 0
    for feature in evidence.to_label():
        proposal = Prefix().explain(evidence, feature)
        explain, _ = evidence.counts(feature, "current")
        words = {}
        for token in explain.hits:
            for prefix in prefixes(evidence.normal(token)):
                words.setdefault(prefix, set()).add(evidence.normal(token))
        usable = [prefix for prefix, found in words.items() if len(found) >= 3]
        chosen = best_of(usable, lambda texts: explain.of(joined(evidence.tokens_by_prefix, texts)))  # noqa: B023
        assert (proposal.rule if proposal else frozenset()) == frozenset(chosen)
        tried += bool(chosen)
    assert tried
