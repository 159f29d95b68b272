"""What the pages show beside a feature's contexts: windows that were judged, whole documents, the map."""

from __future__ import annotations

import httpx
import pytest

D = "/api/v1/dictionaries/tiny.first"


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def alive(client):
    rows = client.get(f"{D}/features", params={"limit": 200, "firing": "alive"}).json()["items"]
    return [row["feature"] for row in rows]


def test_judged_windows_are_those_that_the_score_counts(client, alive):
    n_wrong = 0
    for feature in alive:
        scores = {
            (e["explainer"], s["metric"]): s
            for e in client.get(f"{D}/features/{feature}").json()["explanations"]
            for s in e["scores"]
            if s["scorer"] == "confidence"
        }
        items = client.get(f"{D}/features/{feature}/judged").json()["items"]
        assert {(i["explainer"], "confidence") for i in items} == {key for key in scores if key[1] == "confidence"}
        for item in items:
            assert item["scorer"] == "confidence"
            fires, silent = ([w for w in item["windows"] if w["fires"] == which] for which in (True, False))
            recall, kept = scores[item["explainer"], "recall"], scores[item["explainer"], "true_negative_rate"]
            assert (len(fires), len(silent)) == (recall["n_pos"], recall["n_neg"])
            assert sum(w["said"] for w in fires) / len(fires) == pytest.approx(recall["value"])
            assert 1 - sum(w["said"] for w in silent) / len(silent) == pytest.approx(kept["value"])
            for window in fires:
                assert window["peak"] in window["places"] and len(window["places"]) == len(window["acts"])
            assert all(window["places"] == [] for window in silent)
            n_wrong += sum(w["said"] != w["fires"] for w in item["windows"])
    assert n_wrong > 0


def test_a_context_stands_at_its_position_in_its_document(client, alive):
    documents = {}
    for feature in alive[:12]:
        for item in client.get(f"{D}/features/{feature}/contexts").json()["items"]:
            number = item["document"]
            if number not in documents:
                body = client.get(f"{D}/documents/{number}/text", params={"limit": 5000}).json()
                assert body["n_tokens"] == len(body["texts"])
                documents[number] = body["texts"]
            start = item["position"] - item["peak"]
            assert start >= 0 and documents[number][start : start + len(item["texts"])] == item["texts"]
    assert len(documents) > 5


def test_a_document_is_read_in_parts(client):
    whole = client.get(f"{D}/documents/0/text").json()
    part = client.get(f"{D}/documents/0/text", params={"first": 3, "limit": 4}).json()
    assert part["texts"] == whole["texts"][3:7] and part["first"] == 3
    assert client.get(f"{D}/documents/0/text", params={"first": 10**6}).json()["texts"] == []
    assert client.get(f"{D}/documents/99999/text").status_code == 404


def test_a_rectangle_of_the_map_filters_the_table(client, alive):
    chart = client.get(f"{D}/map").json()
    assert chart["features"] == alive and len(chart["x"]) == len(chart["y"]) == len(chart["group"]) == len(alive)
    assert min(chart["x"]) == min(chart["y"]) == 0 and max(chart["x"]) == max(chart["y"]) == chart["steps"]
    assert set(chart["group"]) <= set(range(-1, len(chart["groups"])))
    half = [f for f, x in zip(chart["features"], chart["x"], strict=True) if x <= 0.5 * chart["steps"]]
    rows = lambda area: client.get(f"{D}/features", params={"area": area, "limit": 200})  # noqa: E731
    assert [row["feature"] for row in rows("0,0.5,0,1").json()["items"]] == half and 0 < len(half) < len(alive)
    for wrong in ("0,1,0", "0,1,0,x", "0,2,0,1", "", "0,1,0,1,1", "-1,1,0,1"):
        assert rows(wrong).status_code == 422, wrong
