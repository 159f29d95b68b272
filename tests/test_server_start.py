"""The start and the end of `sae serve`: what is damaged is said at once, and the exit code tells what happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.client import HTTPConnection

import httpx
import pytest
from fastapi.testclient import TestClient
from fixtures import copy_run, free_port, run_here

from server.app import create_app
from server.catalogue import CatalogueError, open_catalogue
from server.downloads import Downloads
from server.middleware.hosts import host_of


def flip(path, place):
    """Changes one bit at a place between the beginning (0) and the end (1)."""
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    path.write_bytes(data)


def cut(path):
    """Leaves two thirds of a file, which is never the end of a line."""
    data = path.read_bytes().rstrip()
    path.write_bytes(data[: 2 * len(data) // 3].rstrip(b"}\n"))


def generation(folder, kind):
    """The file of a published generation."""
    return folder / "store" / json.loads((folder / "store" / "current.json").read_text())[kind]["file"]


def point_to(folder, **changes):
    """Changes what the pointer says of the contexts."""
    path = folder / "store" / "current.json"
    pointer = json.loads(path.read_text())
    pointer["contexts"] |= changes
    path.write_text(json.dumps(pointer))


def name_weights(folder, name):
    """A card that names a file of weights."""
    path = folder / "card.json"
    card = json.loads(path.read_text()) | {"weights_files": {name: "0" * 64}}
    card.pop("card_sha256", None)
    path.write_text(json.dumps(card))


# What is done to a dictionary folder, and the file that is named.
DAMAGE = {
    **{f"contexts flipped at {p}": (lambda d, p=p: flip(generation(d, "contexts"), p), "contexts-") for p in (0, 0.1, 0.5, 0.9, 1)},
    "explanations flipped": (lambda d: flip(generation(d, "explanations"), 0.6), "explanations-"),
    "contexts cut": (lambda d: cut(generation(d, "contexts")), "contexts-"),
    "contexts gone": (lambda d: generation(d, "contexts").unlink(), "contexts-"),
    "contexts empty": (lambda d: generation(d, "contexts").write_bytes(b""), "contexts-"),
    "pointer cut": (lambda d: cut(d / "store" / "current.json"), "current.json"),
    "pointer empty": (lambda d: (d / "store" / "current.json").write_bytes(b""), "current.json"),
    "pointer garbage": (lambda d: (d / "store" / "current.json").write_bytes(b"\xff\x00"), "current.json"),
    "pointer a list": (lambda d: (d / "store" / "current.json").write_text('["contexts"]'), "current.json"),
    "pointer without file": (lambda d: (d / "store" / "current.json").write_text('{"contexts": 3}'), "current.json"),
    "pointer leads out": (lambda d: point_to(d, file="../../../outside"), "current.json"),
    "pointer is SQL": (lambda d: point_to(d, file="x' as y; select 1; --"), "current.json"),
    "card cut": (lambda d: cut(d / "card.json"), "card.json"),
    "card names a path": (lambda d: name_weights(d, "../../../outside"), "card.json"),
    "card names an absolute path": (lambda d: name_weights(d, "/etc/passwd"), "card.json"),
    "metrics cut": (lambda d: cut(d / "metrics.json"), "metrics.json"),
    "labels garbage": (lambda d: (d / "labels.json").write_bytes(b"\x80"), "labels.json"),
    "training curve cut": (lambda d: cut(d / "training.jsonl"), "training.jsonl"),
    "training curve a number": (lambda d: (d / "training.jsonl").write_text("3\n"), "training.jsonl"),
    "training curve not text": (lambda d: (d / "training.jsonl").write_bytes(b'{"a": "\xff"}\n'), "training.jsonl"),
    "weights flipped": (lambda d: flip(d / "weights.safetensors", 0.9), "weights.safetensors"),
    "weights cut": (lambda d: cut(d / "weights.safetensors"), "weights.safetensors"),
}  # fmt: skip


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run."""
    return copy_run(finished, tmp_path / "run")


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_said_at_the_start_and_sound_dictionaries_are_served(run, name):
    damage, file = DAMAGE[name]
    folder = run / "dictionaries" / "first"
    damage(folder)
    with pytest.raises(CatalogueError, match=file):
        open_catalogue([folder])
    catalogue = open_catalogue([run])
    with TestClient(create_app(catalogue), base_url="http://localhost") as client:
        assert [d["id"] for d in client.get("/api/v1/dictionaries").json()] == ["tiny.second"]
        (left_out,) = client.get("/api/v1/damage").json()
        assert file in left_out["problem"] and str(run.parent) not in left_out["problem"]
        answer = client.get(f"/api/v1/dictionaries/{left_out['id']}")
        assert answer.status_code == 404 and "/api/v1/damage" in answer.json()["error"]["message"]
        for path in ("", "/features", "/download/dictionary.zip"):
            assert client.get(f"/api/v1/dictionaries/tiny.second{path}").status_code == 200


def test_large_files_are_read_while_they_are_served(run, monkeypatch, capsys):
    damage, file = DAMAGE["contexts flipped at 0.5"]
    damage(run / "dictionaries" / "first")
    monkeypatch.setattr("server.catalogue.CHECKED_FIRST", 0)
    reading = threading.Event()
    check = Downloads.check_file

    def late(downloads, path, sha256):
        reading.wait(30)
        check(downloads, path, sha256)

    monkeypatch.setattr(Downloads, "check_file", late)
    catalogue = open_catalogue([run])
    with TestClient(create_app(catalogue), base_url="http://localhost") as client:
        assert len(client.get("/api/v1/dictionaries").json()) == 2
        reading.set()
        while not catalogue.damage:
            time.sleep(0.01)
        while len(catalogue) == 2:
            time.sleep(0.01)
        assert [d["id"] for d in client.get("/api/v1/dictionaries").json()] == ["tiny.second"]
        (left_out,) = client.get("/api/v1/damage").json()
        assert file in left_out["problem"]
    assert "served no longer" in capsys.readouterr().err


def test_a_dictionary_that_cannot_be_opened_keeps_no_other_from_being_checked(finished, run, monkeypatch):
    monkeypatch.setattr("server.catalogue.CHECKED_FIRST", 0)
    third = copy_run(finished, run.parent / "third")
    DAMAGE["training curve cut"][0](run / "dictionaries" / "first")
    DAMAGE["contexts flipped at 0.5"][0](run / "dictionaries" / "second")
    catalogue = open_catalogue([run, third / "dictionaries" / "first"])
    while len(catalogue.damage) < 2:
        time.sleep(0.01)
    assert {damage.folder.name for damage in catalogue.damage} == {"first", "second"}


def test_columns_of_the_widest_dictionary_are_read_at_the_start(run, monkeypatch):
    monkeypatch.setattr("server.catalogue.WIDE", 1)
    catalogue = open_catalogue([run])
    catalogue.load_widest()
    assert sum("columns" in vars(entry.edition().store) for entry in catalogue.entries()) == 1


@pytest.mark.parametrize("name", ["contexts flipped at 0.5", "pointer cut", "training curve cut", "weights flipped"])
def test_nothing_sound_is_exit_code_66(run, name):
    damage, file = DAMAGE[name]
    for dictionary in ("first", "second"):
        damage(run / "dictionaries" / dictionary)
    done = run_here("serve", run, "--port", free_port())
    assert done.returncode == 66 and done.stderr.count(file) == 2 and "Traceback" not in done.stderr


def test_a_link_is_offered_only_if_its_content_is_known(run, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("a canary outside the folder")
    folder = run / "dictionaries" / "first"
    for name in ("report.md", "zf.csv", "concepts.parquet"):
        (folder / name).unlink()
        (folder / name).symlink_to(secret)
    weights = (folder / "weights.safetensors").rename(tmp_path / "weights")
    (folder / "weights.safetensors").symlink_to(weights)
    os.mkfifo(folder / "head_shares.safetensors")  # opening it for reading would wait for a writer
    with TestClient(create_app(open_catalogue([run])), base_url="http://localhost") as client:
        at = "/api/v1/dictionaries/tiny.first/download"
        names = {file["name"] for file in client.get(at).json()}
        assert "weights.safetensors" in names
        for name in ("report.md", "zf.csv", "concepts.parquet", "head_shares.safetensors"):
            assert name not in names and client.get(f"{at}/{name}").status_code == 404
        assert b"canary" not in client.get(f"{at}/dictionary.zip").content


TRAVERSALS = [
    "../card.json", "..%2fcard.json", "..%252fcard.json", "%2e%2e%2fcard.json", "..\\card.json", "..%5ccard.json",
    "card.json;..", "card.json%00", "card.json%23", "/etc/passwd", "%2fetc%2fpasswd", "file:%2f%2f%2fetc%2fpasswd",
    "\\\\host\\share", "%5c%5chost%5cshare", ".", "..", "store", "store%2fcurrent.json", "current.json", "%c0%ae%c0%ae%2f",
    "CARD.JSON", "card.json%20", "card.json/", "config.yaml", "%2e%2e%2f%2e%2e%2fconfig.yaml", "judge_answers.sqlite",
]  # fmt: skip


def test_no_path_can_be_expressed(finished, server):
    secret = (finished / "config.yaml").read_bytes()
    with closing(HTTPConnection(server.removeprefix("http://"))) as client:  # it sends paths as they are
        for name in TRAVERSALS:
            client.request("GET", f"/api/v1/dictionaries/tiny.first/download/{name}")
            answer = client.getresponse()
            body = answer.read()
            assert answer.status == 404 and set(json.loads(body)) == {"error"}, name
            assert secret not in body and b"root:" not in body


def start(*arguments):
    """A server process with its standard error."""
    command = [sys.executable, "-m", "sae.cli", "serve", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for(port, process):
    """Returns when the server answers."""
    for _ in range(200):
        try:
            return httpx.get(f"http://127.0.0.1:{port}/api/v1/dictionaries").raise_for_status()
        except httpx.HTTPError:
            assert process.poll() is None
            time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_clean_stop(finished, number):
    port = free_port()
    with start(finished, "--port", port) as process:
        wait_for(port, process)
        process.send_signal(number)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in log and "warning" not in log


def test_an_address_beyond_this_machine_is_refused_unless_it_is_meant(finished):
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        done = run_here("serve", finished, "--host", host, "--port", free_port())
        assert (
            done.returncode == 2
            and f"{host} is not this machine alone" in done.stderr
            and "--public-read" in done.stderr
        )

    port = free_port()
    with start(finished, "--host", "0.0.0.0", "--public-read", "--port", port) as process:
        wait_for(port, process)
        process.terminate()
        _, log = process.communicate(timeout=20)
    assert f"everybody who reaches port {port} can read" in log


def test_pages_of_allowed_sites_read_and_others_do_not(finished):
    port = free_port()
    with start(finished, "--port", port, "--allow-origin", "https://blog.example.org") as process:
        wait_for(port, process)
        for path in ("/api/v1/dictionaries", "/api/v1/nothing", "/healthz"):
            address = f"http://127.0.0.1:{port}{path}"
            allowed = httpx.get(address, headers={"origin": "https://blog.example.org"})
            other = httpx.get(address, headers={"origin": "https://example.org"})
            assert allowed.headers["access-control-allow-origin"] == "https://blog.example.org"
            assert "access-control-allow-origin" not in other.headers and allowed.status_code == other.status_code
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").text == "ok\n"
        process.terminate()
        process.communicate(timeout=20)
    for wrong in ("*", "null", "blog.example.org", "https://a/b"):
        done = run_here("serve", finished, "--allow-origin", wrong, "--port", free_port())
        assert done.returncode == 2 and f"--allow-origin {wrong}: an origin is wanted" in done.stderr


def test_a_host_name_that_is_none_is_refused(finished):
    for name in ("http://x", "a/b", "", "a b", "user@x", "x:none", "x:0"):
        assert host_of(name) is None, name
    done = run_here("serve", finished, "--allow-host", "http://explorer", "--port", free_port())
    assert done.returncode == 2 and "--allow-host http://explorer: a host name is wanted" in done.stderr
