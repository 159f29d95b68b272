"""The bodies of a real server: every GET route answers with its response model's keys and types, and no others."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from fixtures import strict
from pydantic import TypeAdapter, ValidationError

from feature_store import records
from server import responses
from server.app import create_app
from server.catalogue import Catalogue
from server.routes import comparisons, dictionaries, features, search

PATHS = [
    path
    for path, methods in create_app(Catalogue()).openapi()["paths"].items()
    if "application/json" in methods.get("get", {}).get("responses", {}).get("200", {}).get("content", {})
    and "people" not in methods["get"]["tags"]  # tests/test_people.py looks at those
    and "/comparisons" not in path  # tests/test_compare.py
    and "/findings" not in path  # tests/test_contrast_of_texts.py
    and "/attributions" not in path  # tests/test_heads.py
]
MODELS = {
    route.path: route.response_model
    for router in (comparisons.router, dictionaries.router, features.router, search.router)
    for route in router.routes
    if isinstance(route, APIRoute)
}
# What is asked of a route besides its bare address.
QUERIES: dict[str, list[dict[str, Any]]] = {
    "/api/v1/dictionaries/{dictionary}/features": [{"limit": 200}, {"q": "the"}, {"q": "zzzzqqqq"}],
    "/api/v1/dictionaries/{dictionary}/search": [
        {"q": word, "kind": kind}
        for word in ("token", "the", "zzzz")
        for kind in ("all", "label", "current", "next", "promoted", "sentence")
    ],
}


def check(path: str, body: bytes) -> Any:
    """The parsed body; raises `ValidationError` if it is not of the route's model."""
    TypeAdapter(strict(MODELS[path])).validate_json(body, strict=True)
    return json.loads(body)


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server, timeout=30) as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
def test_bodies_are_of_the_response_model(client, path):
    numbers = range(0, 64, 7) if "{feature}" in path else range(5) if "{document}" in path else [0]
    for dictionary in ("tiny.first", "tiny.second"):
        for number in numbers:
            address = path.format(dictionary=dictionary, feature=number, document=number)
            for query in QUERIES.get(path, [{}]):
                answer = client.get(address, params=query)
                assert answer.status_code == 200, (address, query, answer.text)
                check(path, answer.content)


def test_lists_in_bodies_are_not_all_empty(client):
    """So that the models of their items have been looked at."""
    for path in PATHS:
        address = path.format(dictionary="tiny.first", feature=client_feature(client), document=0)
        body = client.get(address, params=QUERIES.get(path, [{}])[0]).json()
        named = {} if isinstance(body, list) else body
        lists = (
            [body]
            if isinstance(body, list)
            else [v for k, v in named.items() if isinstance(v, list) and k not in ("notes", "other_texts")]
        )
        assert all(lists) or path.endswith(("{feature}", "/damage")), (path, body)
        if path.endswith("{feature}"):
            assert body["explanations"] and body["explanations"][0]["scores"] and body["scores"] and body["neighbours"]


def client_feature(client):
    """A feature that fires often."""
    most = {"sort": "density", "order": "desc", "limit": 1}
    return client.get("/api/v1/dictionaries/tiny.first/features", params=most).json()["items"][0]["feature"]


def test_every_json_route_is_covered():
    assert len(PATHS) >= 8 and set(PATHS) <= set(MODELS)
    assert all(MODELS[path] is not None for path in PATHS)


def test_a_wrong_body_is_refused(client):
    path = "/api/v1/dictionaries/{dictionary}/features/{feature}"
    good = client.get(path.format(dictionary="tiny.first", feature=client_feature(client))).json()
    check(path, json.dumps(good).encode())
    wrong = [
        {**good, "more": 1},
        {key: value for key, value in good.items() if key != "density"},
        {**good, "n_fired": str(good["n_fired"])},
        {**good, "scores": [{**good["scores"][0], "more": 1}]},
        {**good, "neighbours": [{"feature": 1, "cosine": 0.5}]},
    ]
    for body in wrong:
        with pytest.raises(ValidationError):
            check(path, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("record", "model"),
    [
        (records.FeatureRow, responses.FeatureItem),
        (records.Score, responses.ScoreItem),
        (records.Explanation, responses.ExplanationItem),
        (records.Concept, responses.ConceptItem),
    ],
)
def test_records_and_models_have_the_same_fields(record, model):
    assert [field.name for field in dataclasses.fields(record)] == list(model.model_fields)
