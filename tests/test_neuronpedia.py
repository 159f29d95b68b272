"""Neuronpedia's routes: the same facts as ours in its shapes, and its own Python client against a real server."""

from __future__ import annotations

import os

import httpx
import pytest
from fastapi.testclient import TestClient
from fixtures import serving

from feature_store.people.database import People
from server.app import create_app
from server.catalogue import open_catalogue

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
        ("vector/new", {}, 404),
        ("list/list", {}, 404),
        ("feature/upload-batch", {}, 501),
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


def test_lists_and_vectors_are_kept_in_its_shapes(finished, tmp_path):
    people = People(tmp_path / "people.sqlite", create=True)
    key = {"x-api-key": people.add_key("ada", ["write"])}
    with TestClient(create_app(open_catalogue([finished]), people=people), base_url="http://localhost") as client:
        model = client.get(D).json()["model"]
        post = lambda path, body, headers=key: client.post(f"/api/{path}", json=body, headers=headers)  # noqa: E731
        made = post("list/new", {"name": "mine", "description": "what I keep"}).json()
        assert made == {"id": "ada/mine", "name": "mine", "description": "what I keep"}
        assert client.post("/api/list/list", headers=key).json() == [made]
        items = [{"modelId": model, "layer": "tiny.first", "index": n} for n in (9, "3")]
        added = post("list/add-features", {"listId": made["id"], "featuresToAdd": items}).json()
        assert [item["index"] for item in added] == ["9", "3"]
        assert post("list/get", {"listId": made["id"]}, {}).json() == made | {"neurons": added}
        assert client.get(f"{D}/features", params={"list": "ada/mine"}).json()["total"] == 2

        body = {
            "modelId": model,
            "layerNumber": 1,
            "hookType": "hook_resid_post",
            "vector": [0.5, -1],
            "vectorLabel": "v",
        }
        vector = post("vector/new", body).json()["vector"]
        place = {"modelId": model, "source": vector["source"], "index": vector["index"]}
        got = post("vector/get", place, {}).json()["vector"]
        assert got["vector"] == vector["values"] == [0.5, -1] and got["vectorLabel"] == "v" and got["layer"] == "ada"
        assert client.post("/api/vector/list-owned", headers=key).json() == {"vectors": [got]}
        texts = [{"tokens": ["a", " b"], "values": [0, 2.5]}, {"tokens": ["c"], "values": [1.0]}]
        for sent in (texts, texts[:1]):  # the same text is kept once
            answer = post("activation/upload-batch", place | {"activations": sent})
            assert answer.status_code == 200 and answer.json()["activationsCount"] == 2
        neuron = client.get(f"/api/feature/{model}/ada/{vector['index']}").json()
        assert neuron["hasVector"] and neuron["vector"] == [0.5, -1] and neuron["maxActApprox"] == 2.5
        assert [(a["tokens"], a["values"]) for a in neuron["activations"]] == [
            (text["tokens"], text["values"]) for text in texts
        ]
        other = {"x-api-key": people.add_key("bob", ["write"])}
        for path, wrong, who, status in (
            ("list/new", {"name": "x"}, {}, 401),
            ("list/new", {"name": "<x>"}, key, 422),
            ("list/add-features", {"listId": "ada/mine", "featuresToAdd": items}, other, 403),
            ("list/add-features", {"listId": "ada/mine", "featuresToAdd": [items[0] | {"index": 64}]}, key, 404),
            ("list/add-features", {"listId": "ada/mine", "featuresToAdd": []}, key, 422),
            ("list/get", {"listId": "ada/none"}, key, 404),
            ("vector/new", body | {"vector": ["x"]}, key, 422),
            ("vector/delete", place, other, 403),
            ("vector/get", place | {"index": "7"}, key, 404),
            ("activation/upload-batch", place | {"activations": texts}, other, 403),
            ("activation/upload-batch", place | {"activations": []}, key, 422),
            ("activation/upload-batch", place | {"activations": [{"tokens": ["a"], "values": [1, 2]}]}, key, 422),
            ("activation/upload-batch", place | {"activations": [{"tokens": ["a"], "values": ["1"]}]}, key, 422),
            (
                "activation/upload-batch",
                place | {"activations": [{"tokens": [f"{n}"], "values": [1]} for n in range(499)]},
                key,
                422,
            ),
        ):
            assert post(path, wrong, who).status_code == status, (path, wrong)
        assert post("vector/delete", place).status_code == 200 and post("vector/get", place).status_code == 404


@pytest.mark.skipif("SAEDEX_PEERS" not in os.environ, reason="the client is installed beside the peers (make peers)")
def test_its_own_client_keeps_lists_and_vectors(finished, tmp_path, monkeypatch):
    from neuronpedia.np_activation import Activation
    from neuronpedia.np_list import NPList, NPListItem
    from neuronpedia.np_vector import NPVector
    from neuronpedia.requests.base_request import NPRequest
    from neuronpedia.requests.feature_request import FeatureRequest

    people = People(tmp_path / "people.sqlite", create=True)
    monkeypatch.setenv("NEURONPEDIA_API_KEY", people.add_key("ada", ["write"]))
    people.close()
    with serving(finished, "--people", str(tmp_path / "people.sqlite")) as address:
        monkeypatch.setattr(NPRequest, "BASE_URL", f"{address}/api")
        model = httpx.get(f"{address}{D}").json()["model"]
        made = NPList.new("mine", "what I keep")
        made.add_items([NPListItem(model, "tiny.first", "9"), NPListItem(model, "tiny.first", "3")])
        got = NPList.get(made.id)
        assert [item.index for item in got.items] == ["9", "3"] and got.description == "what I keep"
        assert [owned.id for owned in NPList.get_owned()] == [made.id]

        vector = NPVector.new("a way", model, 1, "hook_resid_post", [0.5, -1.0])
        assert NPVector.get(model, vector.source, vector.index) == vector and NPVector.get_owned() == [vector]
        vector.upload_activations([Activation(model, vector.source, int(vector.index), ["a", " b"], [0.0, 2.5])])
        feature = FeatureRequest().get(model, vector.source, int(vector.index))
        assert [(a.tokens, a.values) for a in feature.activations] == [(["a", " b"], [0.0, 2.5])]
        vector.delete()
        assert NPVector.get_owned() == []


@pytest.mark.skipif("SAEDEX_PEERS" not in os.environ, reason="SAELens is installed beside the peers (make peers)")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_saelens_reads_a_feature(server, model, client, monkeypatch):
    from sae_lens.analysis import neuronpedia_integration

    monkeypatch.setattr(neuronpedia_integration, "NEURONPEDIA_DOMAIN", server)
    layer = client.get(D).json()["hook"].rpartition(".")[2]
    found = neuronpedia_integration.get_neuronpedia_feature(3, int(layer), model, "first")
    assert found["index"] == 3 and found["hookName"] == client.get(D).json()["hook"] and found["activations"]
