"""Search by many texts held against others, by a vector, and by meaning."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from fastapi.testclient import TestClient

from feature_store.dictionary_files import DictionaryCard
from feature_store.lookup.contrast import contrast, expected_firing
from feature_store.lookup.decoder import nearest_rows
from feature_store.lookup.meaning import Meaning, texts_of
from feature_store.store import Store
from sae.publish.dictionary import load
from server.app import create_app
from server.catalogue import open_catalogue

D = "/api/v1/dictionaries/tiny.first"


def encode(texts):
    """Unit vectors by the letters of a text: what shares letters is near."""
    rows = np.array([[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], float)
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype(np.float32)


@pytest.fixture(scope="module")
def store(finished):
    with closing(Store(finished / "dictionaries" / "first" / "store")) as store:
        yield store


@pytest.fixture(scope="module")
def client(finished, tmp_path_factory):
    meaning = Meaning(encode, tmp_path_factory.mktemp("meaning"))
    with TestClient(create_app(open_catalogue([finished]), meaning=meaning), base_url="http://localhost") as client:
        yield client


def words_of(store, n):
    """Frequent tokens that are words."""
    rows = store.cursor().execute("select token from token order by n_explain + n_test desc").fetchall()
    texts = (store.vocabulary.shown(token).strip() for (token,) in rows)
    return [text for text in texts if text.isalpha() and len(text) > 2][:n]


def test_expected_firing_is_that_of_the_counts(store):
    [word, other] = words_of(store, 2)
    share = expected_firing(store, [word, f"{word} {other}"])
    rows = store.cursor().execute(
        """select feature, token, (h.n_explain + h.n_test) / (t.n_explain + t.n_test)
        from feature_token h join token t using (token) where kind = 'current'"""
    )
    chances = np.zeros((store.n_features, len(store.vocabulary.tokens)))
    for feature, token, p in rows.fetchall():
        chances[feature, token] = min(p, 1 - 1e-6)
    ids = [store.vocabulary.split(f" {text}") for text in (word, f"{word} {other}")]
    whole = np.stack([1 - np.prod(1 - chances[:, list(dict.fromkeys(tokens))], axis=1) for tokens in ids])
    assert np.allclose(share.mean, whole.mean(0), atol=1e-9)
    assert np.allclose(share.error, whole.std(0) / np.sqrt(2), atol=1e-9)
    nothing = expected_firing(store, ["", "  "])
    assert not nothing.mean.any() and not nothing.error.any()


def test_texts_are_held_against_others(store, client):
    first, second = words_of(store, 40)[::2], words_of(store, 40)[1::2]
    hits = contrast(store, "\n".join(first), "\n".join(second), 10).hits
    difference = expected_firing(store, first).mean - expected_firing(store, second).mean
    assert hits and all(difference[hit.feature] > 0 for hit in hits)
    assert not {h.feature for h in hits} & {
        h.feature for h in contrast(store, "\n".join(second), "\n".join(first), 10).hits
    }

    body = {"q": "\n".join(first), "against": "\n".join(second), "kind": "sentence", "limit": 10}
    answer = client.post(f"{D}/search", json=body)
    assert [item["feature"] for item in answer.json()["items"]] == [hit.feature for hit in hits]
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "body", [[], {}, {"q": ""}, {"q": "x", "kind": "best"}, {"q": "x", "more": 1}, {"q": "x", "limit": 0}, {"q": 3}]
)
def test_a_wrong_search_is_refused(client, body):
    assert client.post(f"{D}/search", json=body).status_code == 422


def test_a_vector_finds_the_rows_that_point_its_way(finished, client):
    folder = finished / "dictionaries" / "first"
    rows = load(folder).W_dec.detach().numpy()
    card = DictionaryCard.read(folder)
    vector = (3 * rows[7] + 0.1 * rows[9]).astype(float)
    near = nearest_rows(folder, card, vector, 5)
    cosines = rows @ vector / np.linalg.norm(vector) / np.linalg.norm(rows, axis=1)
    assert [n.feature for n in near] == np.argsort(-cosines)[:5].tolist() and near[0].feature == 7
    assert [n.cosine for n in near] == pytest.approx(np.sort(cosines)[::-1][:5], abs=1e-5)

    found = client.post(f"{D}/search/vector", json={"vector": vector.tolist(), "limit": 5}).json()
    assert [item["feature"] for item in found["items"]] == [n.feature for n in near]
    for wrong in ([1.0, 2.0], [0.0] * card.d_out, ["x"] * card.d_out, [], None, [True] * card.d_out):
        assert client.post(f"{D}/search/vector", json={"vector": wrong}).status_code == 422
    assert client.post(f"{D}/search/vector", json={"vector": [1.0] * card.d_out, "limit": 0}).status_code == 422


def test_meaning_finds_what_the_words_of_explanations_mean(store, client):
    texts = texts_of(store)
    assert len(texts) == 64 and sum(map(bool, texts)) > 40
    feature = next(f for f, text in enumerate(texts) if text)
    found = client.get(f"{D}/search", params={"q": texts[feature], "kind": "meaning"}).json()
    cosines = encode(texts) @ encode([texts[feature]])[0]
    assert found["items"][0]["feature"] in np.flatnonzero(cosines > cosines.max() - 1e-3)
    assert "meaning" in client.get("/api/v1/capabilities").json()["search"]


def test_vectors_are_made_once(store, tmp_path):
    asked = []

    def counted(texts):
        asked.append(len(texts))
        return encode(texts)

    for _ in range(2):
        vectors = Meaning(counted, tmp_path).vectors(store)
        assert vectors.shape == (64, 26) and vectors.dtype == np.float16
    assert sum(asked) == 64 and [path.suffix for path in tmp_path.iterdir()] == [".npy"]


def test_without_an_encoder_it_says_how_to_get_one(finished):
    with TestClient(create_app(open_catalogue([finished])), base_url="http://localhost") as client:
        refused = client.get(f"{D}/search", params={"q": "war", "kind": "meaning"})
        assert refused.status_code == 501 and "--meaning" in refused.json()["error"]["message"]
        assert "meaning" not in client.get("/api/v1/capabilities").json()["search"]
