"""Every explainer in the folder, on text with planted triggers; scores of random features lie at chance."""

from __future__ import annotations

import numpy as np
import pytest

from feature_store.contexts import ContextLimits
from feature_store.generation import Corpus, Directions, publish
from feature_store.queries import Store, explanations, features
from feature_store.tables import Codes
from sae.interpret.explainers import EXPLAINERS
from sae.interpret.explainers.keyphrase import log_odds
from sae.interpret.label import InterpretConfig, label

VOCABULARY = [b" " + w for w in (b"alpha bravo carol delta eagle fox golf hotel india jewel kilo lemon").split()]
CONTEXTS, LENGTH = 600, 40


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Feature 0 fires on " fox", 1 before " golf", 2 after " hotel" was seen, 3 to 9 at random; 10 and 11 never."""
    rng = np.random.default_rng(0)
    weights = np.ones(len(VOCABULARY))
    weights[[5, 6, 7]] = 0.1
    ids = rng.choice(len(VOCABULARY), (CONTEXTS, LENGTH), p=weights / weights.sum()).astype(np.uint16)
    acts = np.zeros((CONTEXTS, LENGTH, 12), np.float32)
    acts[..., 0] = ids == 5
    acts[:, :-1, 1] = ids[:, 1:] == 6
    for c, p in zip(*(ids == 7).nonzero(), strict=True):
        acts[c, p + 1 : p + 9, 2] = 1
    acts[..., 3:10] = rng.random((CONTEXTS, LENGTH, 7)) < 0.05
    acts *= rng.uniform(0.5, 1.0, acts.shape).astype(np.float32)
    indices = np.broadcast_to(np.arange(12, dtype=np.uint16), acts.shape).copy()
    documents = np.repeat(np.arange(CONTEXTS // 3, dtype=np.uint32), 3)[:, None].repeat(LENGTH, 1)
    codes = Codes(ids, documents, indices, acts)
    folder = tmp_path_factory.mktemp("planted")
    corpus = Corpus(codes, CONTEXTS * LENGTH, VOCABULARY, [f"d{n}" for n in range(CONTEXTS // 3)])
    pairs = np.tile(np.array([[6, 1]]), (12, 1))
    publish(folder / "store", corpus, Directions(*[pairs] * 6), ContextLimits(), 4, 0, {})
    label(folder, InterpretConfig(), lambda a, b: None)
    return Store(folder / "store")


def row(store, feature):
    return features(store, limit=12).rows[feature]


@pytest.mark.parametrize(
    ("feature", "explainer", "word"), [(0, "token", "fox"), (1, "next_token", "golf"), (2, "keyphrase", "hotel")]
)
def test_planted_triggers_get_the_right_kind_of_label(planted, feature, explainer, word):
    found = row(planted, feature)
    assert found.explainer == explainer and word in found.label
    assert found.score > 0.9


def test_random_features_score_at_chance(planted):
    scores = [s.value for f in range(3, 10) for e in explanations(planted, f) for s in e.scores if s.value is not None]
    assert scores and abs(np.mean(scores) - 0.5) < 0.05 and max(scores) < 0.75


def test_silent_features_get_no_label(planted):
    assert row(planted, 10).label is None and row(planted, 11).n_fired == 0


def test_output_rule_uses_the_promoted_tokens(planted):
    output = next(e for e in explanations(planted, 1) if e.explainer == "output")
    assert "golf" in output.text and output.scores[0].value > 0.9


def test_every_explainer_scores_on_documents_it_was_not_made_from(planted):
    made = {e.explainer for f in range(12) for e in explanations(planted, f)}
    assert made == set(EXPLAINERS)
    for feature in range(10):
        for explanation in explanations(planted, feature):
            score = explanation.scores[0]
            assert score.split == "document-hash-half-v1" and score.n_pos > 0 and score.n_neg > 0


def test_log_odds_prefer_what_random_text_lacks():
    from collections import Counter

    scores = log_odds(Counter(rare=8, common=9), 10, Counter(common=90), 100)
    assert scores["rare"] > 2 and abs(scores["common"]) < 1
