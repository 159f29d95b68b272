"""What people say of features: the file, keys and scopes, undo, export and import, blind triage, agreement, the routes."""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from fixtures import run_here, strict
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from feature_store.people.agreement import Said, agreement, alpha_of
from feature_store.people.database import People, PeopleError, Person
from feature_store.people.entry import Entry, EntryError, Place, checked
from server.app import create_app
from server.catalogue import open_catalogue
from server.routes import people as people_routes

D = "/api/v1/dictionaries/tiny.first"
PLACE = Place("tiny.first", "a" * 64, 3)
ADA = Person("ada", ("write",))


@pytest.fixture
def people(tmp_path):
    opened = People(tmp_path / "people.sqlite", create=True)
    yield opened
    opened.close()


@pytest.fixture
def client(finished, people):
    with TestClient(create_app(open_catalogue([finished]), people=people), base_url="http://localhost") as client:
        yield client


@pytest.fixture
def headers(people):
    scopes = {"ada": ["read", "write"], "bob": ["rate"], "eve": ["read"], "root": ["read", "write", "admin"]}
    return {name: {"authorization": f"Bearer {people.add_key(name, allowed)}"} for name, allowed in scopes.items()}


def say(client: Any, headers: dict[str, str], feature: int = 3, **entry: Any) -> Any:
    return client.post(f"{D}/features/{feature}/people", json={"value": None} | entry, headers=headers)


def test_the_newest_entry_counts_and_undoing_brings_the_one_before_back(people):
    first = people.write("ada", PLACE, checked("label", "", "capitals"))
    people.write("bob", PLACE, checked("label", "", "cities"))
    second = people.write("ada", PLACE, checked("label", "", "  capitals of Europe "))
    texts = lambda: [(r.person, r.entry.value) for r in people.said(PLACE.weights, 3, kind="label")]  # noqa: E731
    assert texts() == [("bob", "cities"), ("ada", "capitals of Europe")]

    assert people.undo(ADA).id == second.id and sorted(texts()) == [("ada", "capitals"), ("bob", "cities")]
    assert people.undo(ADA).id == first.id and texts() == [("bob", "cities")]
    with pytest.raises(PeopleError, match="nothing to undo"):
        people.undo(ADA)

    taken_back = people.write("bob", PLACE, Entry("label", "", None))
    assert texts() == [] and len(list(people.records(everything=True))) == 4
    people.undo(Person("bob", ("write",)), taken_back.id)
    assert texts() == [("bob", "cities")]


def test_only_admin_undoes_what_others_said(people):
    entry = people.write("ada", PLACE, checked("tag", "odd", "yes"))
    with pytest.raises(PeopleError, match="another person's"):
        people.undo(Person("bob", ("write",)), entry.id)
    assert people.undo(Person("root", ("admin",)), entry.id).undone_by == "root"
    with pytest.raises(PeopleError, match="undone already"):
        people.undo(Person("root", ("admin",)), entry.id)
    with pytest.raises(PeopleError, match="no entry 99"):
        people.undo(ADA, 99)


def test_what_is_said_of_other_weights_is_not_mixed_in(people):
    people.write("ada", PLACE, checked("label", "", "capitals"))
    assert people.said("b" * 64, 3) == [] and people.said(PLACE.weights, 4) == []


@pytest.mark.parametrize(
    ("kind", "subject", "value", "problem"),
    [
        ("lable", "", "x", "one of label, note"),
        ("label", "", "x" * 201, "up to 200"),
        ("label", "", "two\nlines", "one line"),
        ("label", "why", "x", "has none"),
        ("note", "", "x" * 4001, "up to 4000"),
        ("tag", "", "yes", "name of a tag"),
        ("tag", "<b>", "yes", "name of a tag"),
        ("list", "paper", "maybe", '"yes" is wanted'),
        ("vote", "", "up", "text that is voted on"),
        ("vote", "token x", "sideways", "up or down"),
        ("rating", "", "6", "1 to 5"),
        ("rating", 3, "5", "a text is wanted"),
        ("label", "", 3, "a text is wanted"),
    ],
)
def test_what_cannot_be_said_is_refused_with_what_can(kind, subject, value, problem):
    with pytest.raises(EntryError, match=problem):
        checked(kind, subject, value)


def test_keys_are_kept_as_hashes_and_can_be_revoked(people):
    key = people.add_key("ada", ["write"])
    assert people.person_of(key) == ADA and people.person_of(key + "x") is None
    assert key not in (people.path.read_bytes() + Path(f"{people.path}-wal").read_bytes()).decode("latin-1")
    for name, scopes, problem in (
        ("ada", ["write"], "not given twice"),
        ("a/b", ["write"], "a name has"),
        ("carl", ["everything"], "some of read, rate"),
        ("carl", [], "some of read"),
    ):
        with pytest.raises(PeopleError, match=problem):
            people.add_key(name, scopes)
    people.revoke_key("ada")
    assert people.person_of(key) is None
    with pytest.raises(PeopleError, match="nobody has"):
        people.revoke_key("ada")


def test_a_file_that_is_none_of_ours_is_left_as_it_is(tmp_path):
    text, other, future = tmp_path / "text", tmp_path / "other.sqlite", tmp_path / "future.sqlite"
    text.write_text("no database" * 100, encoding="utf-8")
    with sqlite3.connect(other) as connection:
        connection.execute("create table t (x)")
    People(future, create=True).close()
    with sqlite3.connect(future) as connection:
        connection.execute("pragma user_version = 99")
    connection.close()
    before = [path.read_bytes() for path in (text, other)]
    for path in (text, other, future):
        with pytest.raises(PeopleError, match=path.name):
            People(path, create=True)
    assert [path.read_bytes() for path in (text, other)] == before
    with pytest.raises(PeopleError, match="no such file"):
        People(tmp_path / "none")


def test_many_writers_lose_nothing(people):
    def write(name):
        own = People(people.path)
        for number in range(20):
            own.write(name, PLACE._replace(feature=number), checked("rating", "", "3"))
        own.close()

    threads = [threading.Thread(target=write, args=(f"p{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(people.said(PLACE.weights)) == 80


def test_what_is_exported_can_be_imported_elsewhere_once_and_whole(people, tmp_path):
    for number in range(3):
        people.write("ada", PLACE._replace(feature=number), checked("label", "", f"label {number}"))
    people.write("ada", PLACE, checked("note", "", "half of them\nare names"))
    people.undo(ADA)
    rows = [record.as_json() for record in people.records()]
    other = People(tmp_path / "other.sqlite", create=True)
    assert other.import_records("root", rows) == 3 and other.import_records("root", rows) == 0
    said = lambda file: [(r.at, r.person, r.entry, r.place) for r in file.said(PLACE.weights)]  # noqa: E731
    assert said(other) == said(people)

    for wrong in (
        [*rows, {"kind": "label"}],
        [rows[0] | {"value": "new", "feature": "3"}],
        [rows[0] | {"person": "a b"}],
    ):
        with pytest.raises(EntryError, match=f"line {len(wrong)}"):
            other.import_records("root", [{**rows[0], "value": "would be new"}, *wrong][-len(wrong) :])
    assert said(other) == said(people)
    other.close()


def test_alpha_is_krippendorffs():
    # Krippendorff's own example (Computing Krippendorff's Alpha-Reliability, 2011): 0.743 nominal, 0.815 ordinal.
    table = {
        "A": [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        "B": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        "C": [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        "D": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    }
    said = [Said(n, who, value) for who, values in table.items() for n, value in enumerate(values) if value]
    nominal, ordinal = agreement(said, "nominal"), agreement(said, "ordinal")
    assert nominal.alpha == pytest.approx(0.743, abs=5e-4) and ordinal.alpha == pytest.approx(0.815, abs=5e-4)
    assert nominal.n_things == 11 and nominal.n_people == 4
    assert nominal.low and nominal.high and nominal.low < 0.743 < nominal.high
    assert agreement(said[:9], "nominal") == (None, None, None, 0, 0)
    assert agreement([Said(1, "A", 3), Said(1, "B", 3)], "ordinal").alpha is None


@given(st.lists(st.integers(0, 4), min_size=2, max_size=40))
def test_people_who_always_agree_have_an_alpha_of_one(values):
    counts = 2 * np.eye(5)[values]
    alpha = alpha_of(counts[:, counts.any(0)], "ordinal")
    assert (alpha is None) == (len(set(values)) == 1) and (alpha is None or alpha == pytest.approx(1))


def test_people_who_guess_have_an_alpha_of_about_zero():
    rng = np.random.default_rng(0)
    counts = np.array([np.bincount(rng.integers(0, 5, 3), minlength=5) for _ in range(4000)])
    assert abs(alpha_of(counts, "nominal") or 1) < 0.03 and abs(alpha_of(counts, "ordinal") or 1) < 0.03


def test_without_a_file_nothing_is_shown_or_written(finished):
    with TestClient(create_app(open_catalogue([finished])), base_url="http://localhost") as client:
        assert client.get("/api/v1/people").json() == {"on": False, "person": None, "scopes": []}
        assert client.get("/api/v1/capabilities").json()["people"] is False
        for answer in (
            client.get(f"{D}/features/3/people"),
            client.get(f"{D}/people"),
            client.get(f"{D}/features", params={"tag": "odd"}),
            say(client, {}, kind="label", value="x"),
        ):
            assert answer.status_code == 404 and "--people FILE" in answer.json()["error"]["message"]


def test_a_key_opens_what_its_scopes_say(client, headers):
    assert client.get("/api/v1/people", headers=headers["ada"]).json() == {
        "on": True,
        "person": "ada",
        "scopes": ["read", "write"],
    }
    label: dict[str, Any] = {"kind": "label", "value": "capitals"}
    assert say(client, headers["ada"], **label).status_code == 200
    for wrong, status in (
        ({}, 401),
        ({"authorization": "Bearer sk-nobody"}, 401),
        ({"authorization": "Basic YWRhOng="}, 401),
        (headers["bob"], 403),
        (headers["eve"], 403),
    ):
        assert say(client, wrong, **label).status_code == status
    assert say(client, headers["bob"], kind="rating", value="4").status_code == 200
    assert (
        say(
            client, {"x-api-key": headers["ada"]["authorization"][7:]}, kind="tag", subject="odd", value="yes"
        ).status_code
        == 200
    )
    assert say(client, headers["ada"], feature=64, **label).status_code == 404
    for body in ([], {"kind": "label"}, label | {"more": 1}, {"kind": "label", "value": "x" * 201}):
        answer = client.post(f"{D}/features/3/people", json=body, headers=headers["ada"])
        assert answer.status_code == (422 if body != {"kind": "label"} else 200), body
    too_large = client.post(f"{D}/features/3/people", content=b"[" * (1 << 17), headers=headers["ada"])
    assert too_large.status_code == 413


def test_ratings_are_blind_and_everything_else_is_shown_to_all(client, headers):
    say(client, headers["ada"], kind="rating", value="5")
    say(client, headers["ada"], kind="note", value="half are names")
    kinds = lambda who: [item["kind"] for item in client.get(f"{D}/features/3/people", headers=who).json()["items"]]  # noqa: E731
    assert kinds({}) == kinds(headers["bob"]) == ["note"] and kinds(headers["ada"]) == ["rating", "note"]


def test_tags_and_lists_filter_the_table_and_words_are_found(client, headers):
    for feature in (5, 3):
        say(client, headers["ada"], feature=feature, kind="list", subject="for the paper", value="yes")
    say(client, headers["ada"], feature=5, kind="tag", subject="odd", value="yes")
    say(client, headers["ada"], feature=9, kind="label", value="Zanzibar and its islands")
    rows = lambda **values: [i["feature"] for i in client.get(f"{D}/features", params=values).json()["items"]]  # noqa: E731
    assert rows(list="ada/for the paper") == [3, 5] and rows(tag="odd") == [5] and rows(tag="even") == []
    assert rows(list="ada/for the paper", ids="3,9") == [3]
    summary = client.get(f"{D}/people").json()
    assert summary["tags"] == [{"name": "odd", "features": 1}] and summary["labelled"] == 1
    assert summary["lists"] == [{"person": "ada", "name": "for the paper", "features": [5, 3]}]
    for kind in ("all", "people"):
        [hit] = client.get(f"{D}/search", params={"q": "zanzibar islands", "kind": kind}).json()["items"]
        assert hit["feature"] == 9 and "ada labelled it" in hit["why"]
    assert client.get(f"{D}/search", params={"q": "nowhere", "kind": "people"}).json()["items"] == []


def test_undo_over_http(client, headers):
    entry = say(client, headers["ada"], kind="label", value="capitals").json()
    assert client.post("/api/v1/people/undo", params={"entry": entry["id"]}, headers=headers["bob"]).status_code == 409
    assert client.post("/api/v1/people/undo").status_code == 401
    assert client.post("/api/v1/people/undo", headers=headers["ada"]).json()["undone_by"] == "ada"
    assert client.get(f"{D}/features/3/people").json()["items"] == []


def test_export_and_import_over_http(client, headers):
    say(client, headers["ada"], kind="label", value="first")
    say(client, headers["ada"], kind="label", value="second")
    say(client, headers["root"], kind="tag", subject="odd", value="yes")
    lines = lambda who, **values: [  # noqa: E731
        json.loads(line)
        for line in client.get("/api/v1/people/entries", params=values, headers=headers[who]).text.splitlines()
    ]
    assert [row["value"] for row in lines("ada")] == ["second"] and len(lines("root")) == 2
    assert len(lines("root", all=True)) == 3 and len(lines("root", all=True, after=2)) == 1
    assert client.get("/api/v1/people/entries").status_code == 401

    new = lines("root")[0] | {"person": "zoe", "value": "from elsewhere"}
    body = json.dumps(new) + "\n\n"
    post = lambda who, text: client.post("/api/v1/people/entries", content=text, headers=headers[who])  # noqa: E731
    assert post("ada", body).status_code == 403
    assert post("root", body).json() == {"imported": 1} and post("root", body).json() == {"imported": 0}
    assert post("root", '{"kind": "label"}').status_code == 422 and post("root", "{").status_code == 422


def test_triage_gives_everybody_the_same_order_and_tells_agreement(client, headers):
    queue = lambda who: client.get(f"{D}/triage", params={"limit": 4}, headers=headers[who]).json()  # noqa: E731
    first = queue("ada")["features"]
    assert first == queue("bob")["features"] and len(set(first)) == 4
    for feature, rating in zip(first, "1525", strict=True):
        say(client, headers["ada"], feature=feature, kind="rating", value=rating)
        say(client, headers["bob"], feature=feature, kind="rating", value=rating)
    assert queue("ada")["rated"] == 4 and not set(queue("ada")["features"]) & set(first)
    told = client.get(f"{D}/people").json()["agreement_of_ratings"]
    assert told["alpha"] == pytest.approx(1) and told["n_things"] == 4 and told["n_people"] == 2
    assert client.get(f"{D}/triage").status_code == 401


def test_with_auth_nobody_reads_without_a_key(finished, people):
    key = people.add_key("eve", ["read"])
    app = create_app(open_catalogue([finished]), people=people, needs_key=True)
    with TestClient(app, base_url="http://localhost") as client:
        page, gzip = f"{D}/features/3", {"accept-encoding": "gzip"}
        for path in ("/", "/api/v1/dictionaries", page):
            refused = client.get(path, headers=gzip)
            assert refused.status_code == 401 and "Basic" in refused.headers["www-authenticate"]
        assert client.get("/healthz").status_code == 200
        assert client.get(page, headers=gzip | {"x-api-key": key}).status_code == 200
        assert client.get(page, headers=gzip, auth=("eve", key)).status_code == 200
        assert client.get(page, auth=("eve", "sk-wrong")).status_code == 401
        assert client.get(page, headers={"authorization": "Basic ====="}).status_code == 401
        people.revoke_key("eve")
        assert client.get(page, headers={"x-api-key": key}).status_code == 401


def test_the_command_gives_keys_and_moves_entries(tmp_path):
    file, lines = tmp_path / "people.sqlite", tmp_path / "people.ndjson"
    missing = run_here("people", file, "keys")
    assert missing.returncode == 66 and "no such file" in missing.stderr
    key = run_here("people", file, "add", "ada").stdout.strip()
    assert run_here("people", file, "add", "ada").returncode == 2
    assert run_here("people", file, "add", "bob", "--scopes", "all").returncode == 2
    people = People(file)
    assert people.person_of(key) == Person("ada", ("read", "write"))
    people.write("ada", PLACE, checked("label", "", "capitals"))
    lines.write_text(run_here("people", file, "export").stdout, encoding="utf-8")
    assert json.loads(lines.read_text(encoding="utf-8"))["value"] == "capitals"
    assert "ada  read,write" in run_here("people", file, "keys").stdout.replace("read write", "read,write")
    assert run_here("people", file, "revoke", "ada").returncode == 0 and people.person_of(key) is None
    people.close()

    other = tmp_path / "other.sqlite"
    run_here("people", other, "add", "zoe")
    assert run_here("people", other, "import", lines).stdout == "1 entries imported\n"
    lines.write_text('{"kind": "label"}\n', encoding="utf-8")
    assert run_here("people", other, "import", lines).returncode == 65
    lines.write_text("{", encoding="utf-8")
    assert run_here("people", other, "import", lines).returncode == 65


def test_bodies_are_of_the_response_models(client, headers):
    say(client, headers["ada"], feature=5, kind="tag", subject="odd", value="yes")
    say(client, headers["ada"], feature=5, kind="list", subject="mine", value="yes")
    asked = {
        "/api/v1/people": "/api/v1/people",
        "/api/v1/dictionaries/{dictionary}/people": f"{D}/people",
        "/api/v1/dictionaries/{dictionary}/triage": f"{D}/triage",
        "/api/v1/dictionaries/{dictionary}/features/{feature}/people": f"{D}/features/5/people",
    }
    models = {
        r.path: r.response_model for r in people_routes.router.routes if isinstance(r, APIRoute) and "GET" in r.methods
    }
    assert set(asked) | {"/api/v1/people/entries"} == set(models)
    for path, address in asked.items():
        answer = client.get(address, headers=headers["ada"])
        TypeAdapter(strict(models[path])).validate_json(answer.content, strict=True)
        assert answer.headers["cache-control"] == "no-store"
