"""What strangers send: text in every parameter, other origins, redirects, SQL; and no way for text to become code."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import duckdb
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_store.lookup.search import KINDS
from feature_store.store import Store
from server.app import create_app
from server.catalogue import open_catalogue

ROOT = Path(__file__).parent.parent
D = "/api/v1/dictionaries/tiny.first"
SEEDS = [
    "'", '"', "%", "_", "\\", ";--", "' or 1=1 --", "'; drop table feature; --", "]", "*", "(a+)+$", "%_%_%_%", "\0",
    "${x}", "{{7*7}}", "../..", "\r\nset-cookie: a=b", "=1+1", "<script>", "\u202e", "\U0001f600", "cat", "token",
]  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)  # what UTF-8 can carry
TEXTS = st.sampled_from(SEEDS) | TEXT | st.lists(st.sampled_from(SEEDS), max_size=4).map("".join)
FEW = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def client(finished):
    """A server in this process, whose bugs are raised here."""
    with TestClient(create_app(open_catalogue([finished])), base_url="http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def rows(client):
    """Every row of the table."""
    return client.get(f"{D}/features", params={"limit": 200}).json()["items"]


def is_right(answer):
    """Whether it is an answer, or a refusal in the one shape."""
    return answer.status_code == 200 or (
        answer.status_code in (404, 422) and set(answer.json()["error"]) == {"code", "message"}
    )


@FEW
@given(query=TEXTS, explainer=TEXTS)
def test_filters_find_what_a_plain_loop_finds(client, rows, query, explainer):
    for name, text in (("q", query), ("explainer", explainer)):
        answer = client.get(f"{D}/features", params={name: text, "limit": 200})
        assert is_right(answer)
        if answer.status_code == 200 and text.isascii():  # others may fold to several
            by_hand = {
                row["feature"]
                for row in rows
                if (
                    not text or row["explainer"] in text.split(",")
                    if name == "explainer"
                    else all(word.lower() in (row["label"] or "").lower() for word in text.split())
                )
            }
            assert {item["feature"] for item in answer.json()["items"]} == by_hand


@FEW
@given(text=TEXTS, kind=st.sampled_from(sorted(KINDS)) | TEXTS)
def test_searches_answer_or_refuse(client, text, kind):
    assert is_right(client.get(f"{D}/search", params={"q": text, "kind": kind}))


@FEW
@given(part=TEXTS, number=st.integers() | st.floats() | TEXTS, name=TEXTS)
def test_paths_and_parameters_answer_or_refuse(client, part, number, name):
    segment, digits = quote(part, safe=""), quote(str(number), safe="")
    for path in (
        f"/api/v1/dictionaries/{segment}",
        f"/api/v1/dictionaries/{segment}/features/{digits}",
        f"{D}/features/{digits}/contexts",
        f"{D}/documents/{digits}",
        f"{D}/download/{segment}",
        f"/{segment}/{digits}",
    ):
        assert is_right(client.get(path)), path
    for parameter in ("limit", "offset", "min_density", "max_density", "min_score", "firing", "sort", "order", "after"):
        assert is_right(client.get(f"{D}/features", params={parameter: str(number)})), parameter
    assert is_right(client.get(f"{D}/features", params={name: part}))


def test_nothing_redirects_and_no_header_can_be_planted(client):
    for path in (
        "//evil.example",
        "/\\evil.example",
        "/%5cevil.example",
        "/a/",
        f"{D}/",
        "/%0d%0aset-cookie:%20a=b",
        "/http://evil",
    ):
        answer = client.get(path, follow_redirects=False)
        assert answer.status_code in (200, 404) and "location" not in answer.headers, path
        assert "set-cookie" not in answer.headers and "evil" not in answer.text, path


def test_other_origins_may_read_nothing(client):
    other = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    preflight = {**other, "access-control-request-method": "GET", "access-control-request-headers": "x"}
    for answer in (client.get(D, headers=other), client.options(D, headers=preflight)):
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "set-cookie" not in answer.headers


def test_the_store_reaches_nothing_else(finished):
    with closing(Store(finished / "dictionaries" / "first" / "store")) as store:
        for statement in (
            "select * from read_text('/etc/passwd')",
            "select * from read_csv('/etc/passwd')",
            "attach '/tmp/x.duckdb'",
            "copy feature to '/tmp/x.csv'",
            "install httpfs",
            "set enable_external_access=true",
            "delete from feature",
            f"create table {store._catalogs[0]}.x (a int)",
        ):
            with pytest.raises(duckdb.Error):
                store.cursor().execute(statement)


def test_the_explorer_makes_no_markup_of_text():
    pattern = re.compile(r"\{@html|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc")
    sources = [p for p in (ROOT / "server" / "ui" / "src").rglob("*") if p.suffix in (".ts", ".svelte")]
    assert len(sources) > 10
    assert [(p.name, m.group()) for p in sources for m in pattern.finditer(p.read_text())] == []
    assert "<script>" not in (ROOT / "server" / "ui" / "index.html").read_text()
