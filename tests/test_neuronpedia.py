"""Neuronpedia's routes: the same facts as ours in its shapes, and its own Python client against a real server."""

from __future__ import annotations

import os

import httpx
import pytest

D = "/api/v1/dictionaries/tiny.first"


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def model(client):
    return client.get(D).json()["model"]


def test_a_neuron_says_what_the_feature_says(client, model):
    for source in ("tiny.first", "first"):
        neuron = client.get(f"/api/feature/{model}/{source}/3").raise_for_status().json()
        feature, contexts = client.get(f"{D}/features/3").json(), client.get(f"{D}/features/3/contexts").json()
        assert (neuron["index"], neuron["layer"], neuron["modelId"]) == ("3", "tiny.first", model)
        assert neuron["frac_nonzero"] == feature["density"] and neuron["maxActApprox"] == feature["max_act"]
        assert neuron["pos_str"] == [t["text"] for t in feature["promoted"]]
        assert [e["description"] for e in neuron["explanations"]] == [e["text"] for e in feature["explanations"]]
        assert len(neuron["activations"]) == len(contexts["items"])
        for activation, item in zip(neuron["activations"], contexts["items"], strict=True):
            assert activation["tokens"] == item["texts"] and activation["maxValueTokenIndex"] == item["peak"]
            assert [v for v in activation["values"] if v] == item["acts"]


def test_batches_keep_their_order(client, model):
    wanted = [{"modelId": model, "layer": "tiny.first", "index": n, "maxActsToReturn": 2} for n in (9, 3, "5")]
    found = client.post("/api/features", json=wanted).raise_for_status().json()
    assert [n["index"] for n in found] == ["9", "3", "5"] and all(len(n["activations"]) <= 2 for n in found)
    following = client.post("/api/features-offset", json={"modelId": model, "layer": "tiny.first", "offset": 10}).json()
    assert len(following) == 25 and min(int(n["index"]) for n in following) >= 10


def test_explanations_are_searched_page_by_page(client, model):
    seen, offset = [], 0
    while offset is not None:
        body = {"modelId": model, "layers": ["tiny.first"], "query": "token", "offset": offset}
        page = client.post("/api/explanation/search", json=body).raise_for_status().json()
        seen += [hit["index"] for hit in page["results"]]
        assert page["hasMore"] == (page["nextOffset"] is not None) and page["resultsCount"] == len(page["results"])
        offset = page["nextOffset"]
    assert len(seen) == len(set(seen)) > 20
    for scope in ("search-model", "search-all"):
        page = client.post(f"/api/explanation/{scope}", json={"modelId": model, "query": "token"}).json()
        assert len(page["results"]) == 20 and {hit["layer"] for hit in page["results"]} <= {"tiny.first", "tiny.second"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("features", [], 422),
        ("features", {"modelId": 1}, 422),
        ("features", [{"modelId": "x", "layer": "y", "index": 1}], 404),
        ("features", [3], 422),
        ("features-offset", {"modelId": "MODEL", "layer": "tiny.first", "offset": 64}, 404),
        ("features-offset", {"modelId": "MODEL", "layer": "tiny.first", "offset": -1}, 404),
        ("features-offset", [], 422),
        ("explanation/search", {"query": ""}, 422),
        ("explanation/search", {"query": "x", "layers": ["nope"]}, 404),
        ("explanation/else", {"query": "x"}, 422),
        ("explanation/generate", {}, 501),
        ("steer", {}, 501),
        ("steer/", {}, 501),
        ("vector/new", {}, 501),
        ("nothing", {}, 405),
    ],
)
def test_refusals_are_plain(client, model, path, body, status):
    body = body | {"modelId": model} if isinstance(body, dict) and body.get("modelId") == "MODEL" else body
    answer = client.post(f"/api/{path}", json=body)
    assert answer.status_code == status and answer.json()["error"]["message"], answer.text


def test_bodies_are_bounded(client):
    assert client.post("/api/features", content=b"[" + b" " * 70_000 + b"]").status_code == 413
    assert client.post("/api/features", content=b"[" * 50_000).status_code == 422
    assert client.post("/api/features", content=b"\xff\x00").status_code == 422


@pytest.mark.skipif("SAEDEX_PEERS" not in os.environ, reason="the client is installed beside the peers (make peers)")
def test_its_own_client_reads_features(server, model, monkeypatch):
    from neuronpedia.requests.base_request import NPRequest
    from neuronpedia.requests.feature_request import FeatureRequest
    from neuronpedia.requests.steer_request import SteerCompletionRequest
    from requests.exceptions import HTTPError

    monkeypatch.setattr(NPRequest, "BASE_URL", f"{server}/api")  # USE_LOCALHOST wants port 3000
    feature = FeatureRequest(api_key="none").get(model, "tiny.first", 3)
    ours = httpx.get(f"{server}{D}/features/3").json()
    assert (feature.modelId, feature.source, feature.density) == (model, "tiny.first", ours["density"])
    assert [e.text for e in feature.explanations] == [e["text"] for e in ours["explanations"]]
    assert feature.activations and all(len(a.tokens) == len(a.values) for a in feature.activations)
    with pytest.raises(HTTPError, match="not found"):
        FeatureRequest(api_key="none").get(model, "tiny.first", 64)
    with pytest.raises(HTTPError, match="501"):
        SteerCompletionRequest(api_key="none").send_request(json={})
