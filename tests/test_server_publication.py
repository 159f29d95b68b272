"""A running server while dictionaries are published: every answer is of one generation, and none is refused."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
import zipfile
from collections import defaultdict
from contextlib import closing

import httpx
import pytest
from fastapi.testclient import TestClient
from fixtures import copy_run, no_model, serving

from feature_store import queries
from feature_store.store import Store
from sae.interpret.interpret import InterpretConfig, interpret
from server.app import create_app
from server.catalogue import open_catalogue

D = "/api/v1/dictionaries/tiny.first"
EXPLAINERS = (("token",), ("output",), ("token", "bigram"))
PUBLICATIONS, CLIENTS = 4, 3


def publish(folder, number):
    """What `sae interpret` publishes: a generation, and the summary a moment later."""
    config = InterpretConfig(explainers=EXPLAINERS[number % len(EXPLAINERS)], scorers=("token_lookup",))
    interpret(folder, config, no_model).write(folder)


class Reader:
    """A client that asks for everything in turn, and checks what can be checked in an answer alone."""

    def __init__(self, address, folder, stop):
        self.address, self.folder, self.stop = address, folder, stop
        self.n_answers, self.n_archives = 0, 0
        self.bodies = defaultdict(set)  # (path, tag) -> hashes of bodies
        self.labels = defaultdict(set)  # generation -> labels in the dictionary's detail
        self.explainers = defaultdict(set)  # generation -> explainers of the labels in the table
        self.problem = None

    def run(self):
        """Asks until it is told to stop."""
        try:
            with httpx.Client(base_url=self.address, timeout=60) as client:
                while not self.stop.is_set():
                    self.ask_everything(client)
        except BaseException as error:
            self.problem = error

    def get(self, client, path):
        """The answer, which must be a good one, and always the same under one tag."""
        answer = client.get(path)
        assert answer.status_code == 200, (path, answer.status_code, answer.text[:500])
        self.n_answers += 1
        if "etag" in answer.headers:
            self.bodies[path, answer.headers["etag"]].add(hashlib.sha256(answer.content).hexdigest())
        return answer

    def ask_everything(self, client):
        """One turn."""
        detail = self.get(client, D)
        body = detail.json()
        assert body["generation"] in detail.headers["etag"]
        self.labels[body["generation"]].add(json.dumps(body["labels"]))

        table = self.get(client, f"{D}/features?limit=200")
        generation = table.headers["etag"].removeprefix('W/"').rsplit("-", 1)[0]
        self.explainers[generation].add(frozenset(i["explainer"] for i in table.json()["items"] if i["explainer"]))

        for path in (f"{D}/features/3", f"{D}/features/3/contexts", f"{D}/concepts", "/api/v1/dictionaries"):
            self.get(client, path)

        files = self.get(client, f"{D}/download").json()
        stores = [file for file in files if file["name"].endswith(".duckdb")]
        assert len(stores) == 2 and all(file["sha256"][:16] in file["name"] for file in stores)
        self.check_archive(self.get(client, f"{D}/download/dictionary.zip"))

    def check_archive(self, answer):
        """The archive holds the generations that its own pointer names, whole."""
        assert len(answer.content) == int(answer.headers["content-length"])
        archive = zipfile.ZipFile(io.BytesIO(answer.content))
        assert archive.testzip() is None
        pointer = json.loads(archive.read("first/store/current.json"))
        names = [name.removeprefix("first/store/") for name in archive.namelist() if name.endswith(".duckdb")]
        assert sorted(names) == sorted(generation["file"] for generation in pointer.values())
        for generation in pointer.values():
            data = archive.read(f"first/store/{generation['file']}")
            assert hashlib.sha256(data).hexdigest() == generation["sha256"]
        self.n_archives += 1


def publish_under_load(run, n_publications, n_clients):
    """Publishes while clients read; returns how many answers and archives they had. Raises if one of them was wrong."""
    folder, stop = run / "dictionaries" / "first", threading.Event()
    shown = {}
    with serving(run) as address:
        readers = [Reader(address, folder, stop) for _ in range(n_clients)]
        threads = [threading.Thread(target=reader.run) for reader in readers]
        for thread in threads:
            thread.start()
        for number in range(n_publications):
            publish(folder, number)
            with closing(Store(folder / "store")) as store:
                shown[store.generation] = frozenset(name for name, _ in queries.explainers_of_labels(store))
            last = httpx.get(f"{address}{D}", timeout=60).json()
            assert last["generation"] == store.generation
            assert last["labels"] == json.loads((folder / "labels.json").read_text())
        stop.set()
        for thread in threads:
            thread.join()

    for reader in readers:
        if reader.problem:
            raise reader.problem
    bodies, labels, explainers = defaultdict(set), defaultdict(set), defaultdict(set)
    for reader in readers:
        for ours, theirs in ((bodies, reader.bodies), (labels, reader.labels), (explainers, reader.explainers)):
            for key, values in theirs.items():
                ours[key] |= values
    assert all(len(hashes) == 1 for hashes in bodies.values())
    assert all(len(texts - {"{}"}) <= 1 for texts in labels.values())
    assert {generation: {names} for generation, names in shown.items() if generation in explainers} == {
        generation: names for generation, names in explainers.items() if generation in shown
    }
    return sum(reader.n_answers for reader in readers), sum(reader.n_archives for reader in readers)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, to publish into."""
    return copy_run(finished, tmp_path / "run")


def test_readers_never_see_two_generations_at_once(run):
    n_answers, n_archives = publish_under_load(run, PUBLICATIONS, CLIENTS)
    assert n_answers > 8 * CLIENTS and n_archives >= CLIENTS


@pytest.fixture
def client(run):
    """A server over the copy, in this process."""
    with TestClient(create_app(open_catalogue([run])), base_url="http://localhost") as client:
        yield client


def test_a_new_generation_is_in_the_archive_and_the_list_at_once(run, client):
    folder = run / "dictionaries" / "first"
    client.get(f"{D}/download/dictionary.zip").raise_for_status()
    publish(folder, 1)
    archive = zipfile.ZipFile(io.BytesIO(client.get(f"{D}/download/dictionary.zip").raise_for_status().content))
    archive.extractall(run / "unpacked")
    with closing(Store(run / "unpacked" / "first" / "store")) as store:
        assert {name for name, _ in queries.explainers_of_labels(store)} == {"output"}
        generation = store.generation
    on_offer = {file["name"] for file in client.get(f"{D}/download").json()}
    assert {path.name for path in (folder / "store").glob("*.duckdb")} < on_offer
    assert client.get(D).json()["generation"] == generation


def test_figures_are_those_of_now(run, client):
    folder = run / "dictionaries" / "first"
    before = client.get(D)
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.new").write_text(json.dumps(metrics | {"fvu": 0.125}))
    (folder / "metrics.new").replace(folder / "metrics.json")
    after = client.get(D, headers={"if-none-match": before.headers["etag"]})
    assert after.status_code == 200 and after.json()["fvu"] == after.json()["metrics"]["fvu"] == 0.125
    assert next(d for d in client.get("/api/v1/dictionaries").json() if d["id"] == "tiny.first")["fvu"] == 0.125
    assert before.json()["labels"]["labels_by_explainer"] == after.json()["labels"]["labels_by_explainer"]


def test_labels_of_another_generation_are_not_shown(run, client):
    folder = run / "dictionaries" / "first"
    summary = interpret(
        folder, InterpretConfig(explainers=("output",)), no_model
    )  # labels.json is still the former one
    assert client.get(D).json()["labels"] == {}
    summary.write(folder)
    assert client.get(D).json()["labels"]["labels_by_explainer"]["output"] > 0


def test_files_that_become_unreadable_are_served_as_they_were(run, client, capfd):
    folder = run / "dictionaries" / "first"
    before = client.get(D).json()
    for name in ("metrics.json", "training.jsonl", "store/current.json", "card.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        assert client.get(D).json() == before, name
        assert client.get(f"{D}/features/3").status_code == 200
        (folder / name).write_bytes(whole)
        assert client.get(D).json() == before, name
    assert capfd.readouterr().err.count("is served as it was") == 4


def test_a_download_that_has_begun_ends_with_what_it_began_with(run):
    """The file is replaced while it is being sent; on disk it is gone by then."""
    folder = run / "dictionaries" / "first"
    large = folder / "contexts.parquet"
    large.write_bytes(b"a" * (24 << 20))
    with serving(run) as address, httpx.stream("GET", f"{address}{D}/download/contexts.parquet", timeout=60) as answer:
        chunks = answer.iter_raw(1 << 16)
        received = len(next(chunks))
        replacement = folder / "new"
        replacement.write_bytes(b"b" * (24 << 20))
        replacement.replace(large)
        time.sleep(0.1)
        for chunk in chunks:
            assert set(chunk) == {ord("a")}
            received += len(chunk)
    assert received == 24 << 20


def test_archives_leave_nothing_behind(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    with serving(run) as address:
        for number in range(2):
            publish(run / "dictionaries" / "first", number)
            httpx.get(f"{address}{D}/download/dictionary.zip", timeout=60).raise_for_status()
        assert list((tmp_path / "scratch").iterdir()) == []
