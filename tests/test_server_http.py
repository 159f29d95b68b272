"""HTTP as RFC 9110 has it: methods, conditional requests, ranges, and headers that every answer carries."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from contextlib import closing
from io import FileIO

import httpx
import pytest
from fastapi.testclient import TestClient

from server.app import create_app
from server.catalogue import Catalogue
from server.parts import FilePart
from server.routes import features
from server.zip_archive import Member, zip_parts

D = "/api/v1/dictionaries/tiny.first"
PATHS = [
    "/",
    "/api/v1/openapi.json",
    "/api/v1/dictionaries",
    "/api/v1/damage",
    "/api/v1/capabilities",
    D,
    f"{D}/concepts",
    f"{D}/documents/0",
    f"{D}/documents/0/text",
    f"{D}/map",
    f"{D}/features/3/judged",
    f"{D}/download",
    f"{D}/download/weights.safetensors",
    f"{D}/download/dictionary.zip",
    f"{D}/features",
    f"{D}/explainers",
    f"{D}/scatter",
    f"{D}/examples",
    f"{D}/features/3",
    f"{D}/features/3/contexts",
    f"{D}/features/3/picture.png",
    f"{D}/search?q=cat",
]
TAGGED = [path for path in PATHS if path.startswith(D) and not path.endswith("/download")]
SAFE = ("content-security-policy", "x-content-type-options", "referrer-policy")


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server, timeout=30) as client:
        yield client


def code_of(answer):
    """The code of an error, which must have the one shape and the safe headers."""
    assert set(answer.json()) == {"error"} and set(answer.json()["error"]) == {"code", "message"}
    assert all(answer.headers.get(name) for name in SAFE)
    return answer.json()["error"]["code"]


@pytest.mark.parametrize("path", PATHS)
def test_head_answers_as_get_without_a_body(client, path):
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    ignored = {"date", "server-timing"}
    assert {k: v for k, v in head.headers.items() if k not in ignored} == {
        k: v for k, v in got.headers.items() if k not in ignored
    }
    assert all(got.headers.get(name) for name in SAFE)


def test_every_route_is_in_the_list(client):
    routes = client.get("/api/v1/openapi.json").json()["paths"]
    elsewhere = [
        r
        for r, methods in routes.items()
        if any(part in r for part in ("/comparisons", "/findings", "/attributions"))
        or "people" in next(iter(methods.values()))["tags"]
    ]
    assert (
        len(elsewhere) == 12
    )  # tests/test_people.py, test_compare.py, test_contrast_of_texts.py and test_heads.py look at those
    for route in routes.keys() - {*elsewhere, "/api/v1/dictionaries/{dictionary}/search/vector"}:
        pattern = route.format(dictionary="tiny.first", feature=3, document=0, file="dictionary.zip")
        assert any(path.split("?")[0] == pattern for path in PATHS), route
    written = {route for route, methods in routes.items() if "post" in methods}
    assert all("/people" in route or "/search" in route for route in written)
    assert all(set(methods) <= {"get", "post"} for methods in routes.values())


@pytest.mark.parametrize("path", PATHS)
def test_other_methods_say_what_is_allowed(client, path):
    allowed = "GET, HEAD, POST" if "/search" in path else "GET, HEAD"
    for method in {"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"} - set(allowed.split(", ")):
        answer = client.request(method, path)
        assert answer.status_code == 405 and answer.headers["allow"] == allowed, method
        assert code_of(answer) == "method_not_allowed"


@pytest.mark.parametrize("path", TAGGED)
def test_the_client_is_told_that_it_has_the_answer(client, path):
    for encoding in ("gzip", "identity"):
        tag = client.get(path, headers={"accept-encoding": encoding}).headers["etag"]
        opaque = tag.removeprefix("W/")
        for known in (tag, opaque, f"W/{opaque}", f'"other", {tag}', f'{tag},"other"', "*"):
            again = client.get(path, headers={"if-none-match": known, "accept-encoding": encoding})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag), known
            assert client.head(path, headers={"if-none-match": known}).status_code == 304
            assert all(again.headers.get(name) for name in SAFE)
        for unknown in ('"other"', opaque.strip('"'), opaque[:-2] + '"', "", 'W/"*"'):
            assert client.get(path, headers={"if-none-match": unknown}).status_code == 200, unknown


def test_compressed_answers_have_no_strong_tag(client):
    answer = client.get(f"{D}/features", headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip" and answer.headers["etag"].startswith("W/")
    assert answer.headers["vary"].lower() == "accept-encoding"
    assert not client.get(f"{D}/download/card.json").headers["etag"].startswith("W/")


@pytest.mark.parametrize("name", ["weights.safetensors", "dictionary.zip"])
def test_ranges(client, name):
    path = f"{D}/download/{name}"
    whole = client.get(path)
    size, tag = len(whole.content), whole.headers["etag"]
    for wanted, first, last in (
        ("0-0", 0, 0),
        ("8-1500", 8, 1500),
        (f"{size - 1}-", size - 1, size - 1),
        (f"100-{10**30}", 100, size - 1),
        ("-700", size - 700, size - 1),
        (f"-{10**30}", 0, size - 1),
    ):
        part = client.get(path, headers={"range": f"bytes={wanted}", "if-range": tag})
        assert part.status_code == 206 and part.content == whole.content[first : last + 1], wanted
        assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
    middle = size // 2
    halves = [client.get(path, headers={"range": f"bytes={r}"}).content for r in (f"0-{middle - 1}", f"{middle}-")]
    assert b"".join(halves) == whole.content
    for header, value in (("if-range", '"other"'), ("if-range", f"W/{tag}")):
        assert client.get(path, headers={"range": "bytes=0-1", header: value}).content == whole.content
    for ignored in ("bytes=0-1,5-6", "lines=0-1", "bytes=" + ",".join(f"{i}-{i}" for i in range(0, 2000, 2))):
        assert client.get(path, headers={"range": ignored}).content == whole.content
    for wrong in ("bytes=5-2", "bytes=x-y", "bytes=", "bytes=-", "bytes", "bytes=--1", f"bytes={'9' * 5000}-"):
        assert code_of(client.get(path, headers={"range": wrong})) == "bad_request", wrong
    for outside in (f"bytes={size}-", f"bytes={10**30}-", "bytes=-0"):
        answer = client.get(path, headers={"range": outside})
        assert answer.status_code == 416 and answer.headers["content-range"] == f"bytes */{size}"
        assert code_of(answer) == "range_not_satisfiable"


@pytest.mark.parametrize("number", [2**31, 2**32, 2**63, 2**64, 2**128, 10**400, -1, -(2**64)])
def test_numbers_that_no_store_holds_are_not_there(client, number):
    for path in (f"{D}/documents/{number}", f"{D}/features/{number}", f"{D}/features/{number}/contexts"):
        answer = client.get(path)
        assert answer.status_code == 404 and code_of(answer) == "not_found", path


def test_a_number_of_too_many_digits_is_no_number(client):
    for path in (f"{D}/documents/{'9' * 5000}", f"{D}/features/{'9' * 5000}", f"{D}/documents/1e3"):
        answer = client.get(path)
        assert answer.status_code == 422 and code_of(answer) == "invalid_parameter"


def test_a_bug_is_answered_with_all_headers(monkeypatch):
    def bug(*_, **__):
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(features.queries, "features", bug)
    with TestClient(create_app(Catalogue()), base_url="http://localhost", raise_server_exceptions=False) as client:
        monkeypatch.setattr("server.routes.features.edition_of", bug)
        answer = client.get(f"{D}/features")
    assert answer.status_code == 500 and code_of(answer) == "internal" and "secret" not in answer.text


class Joined(io.RawIOBase):
    """Parts of a response as one file that can be read anywhere."""

    def __init__(self, parts):
        self.parts, self.place, self.size = parts, 0, sum(map(len, parts))

    def seekable(self):
        return True

    def readable(self):
        return True

    def seek(self, offset, whence=0):
        self.place = (0, self.place, self.size)[whence] + offset
        return self.place

    def tell(self):
        return self.place

    def readinto(self, buffer):
        begin = 0
        for part in self.parts:
            if begin <= self.place < begin + len(part):
                inside = self.place - begin
                if isinstance(part, FilePart):
                    part.file.seek(inside)
                    data = part.file.read(min(len(buffer), len(part) - inside))
                else:
                    data = part[inside : inside + len(buffer)]
                buffer[: len(data)] = data
                self.place += len(data)
                return len(data)
            begin += len(part)
        return 0


def test_an_archive_of_more_than_4_gib_opens(tmp_path):
    """The large members are holes in a file: only what is read of them is made."""
    large = tmp_path / "large"
    sizes = [5 << 30, 3, (1 << 32) - 1, 7]
    with large.open("wb") as file:
        file.truncate(max(sizes))
    with closing(FileIO(large)) as file:
        members = [
            Member(f"d/{number}", FilePart(file, size), zlib.crc32(bytes(size)) if size < 100 else 0)
            for number, size in enumerate(sizes)
        ]
        members.append(Member("d/große.json", b"{}", zlib.crc32(b"{}")))
        archive = zipfile.ZipFile(io.BufferedReader(Joined(zip_parts(members))))
        assert [info.file_size for info in archive.infolist()] == [*sizes, 2]
        assert archive.read("d/große.json") == b"{}"
        for number in range(4):
            with archive.open(f"d/{number}") as member:
                assert member.read(3) == b"\0\0\0"


def test_addresses_like_neuronpedias_lead_to_the_feature(client):
    answer = client.get("/any-model/tiny.first/12", params={"embed": "true"})
    assert 'content="0; url=../../#/tiny.first/features/12?embed=true"' in answer.text
    for path in (
        "/m/tiny.frist/12",
        "/m/tiny.first/x",
        "/m/tiny.first/1/2",
        "/m/tiny.first/%0d%0a1",
        "/m/tiny.first/-1",
    ):
        answer = client.get(path)
        assert answer.status_code in (200, 404) and "refresh" not in answer.text, path


def test_ready_pages_are_what_the_routes_answer(client):
    """A parameter that changes nothing goes the long way, through every middleware and the route."""
    for path in (f"{D}/features/3", f"{D}/features/3/contexts"):
        for encoding in ("gzip", "identity"):
            headers = {"accept-encoding": encoding}
            ready, routed = client.get(path, headers=headers), client.get(f"{path}?", headers=headers | {"origin": "x"})
            assert ready.content == routed.content and ready.status_code == routed.status_code == 200
            for name in ("etag", "content-type", "cache-control", "vary", *SAFE):
                assert ready.headers[name] == routed.headers[name], name
            assert ("server-timing" in ready.headers) == (encoding == "identity") and "server-timing" in routed.headers
    assert client.get(f"{D}/features/3", headers={"host": "evil.example"}).status_code == 421
    assert client.get(f"{D}/features/64").status_code == 404


def test_assets_stay_with_the_browser(client):
    page = client.get("/").text
    script = re.search(r"assets/[\w.-]+\.js", page).group()
    packed, plain = (client.get(f"/{script}", headers={"accept-encoding": kind}) for kind in ("gzip", "identity"))
    assert packed.headers["content-encoding"] == "gzip" and "content-encoding" not in plain.headers
    assert packed.content == plain.content and "immutable" in packed.headers["cache-control"]
    assert int(packed.headers["content-length"]) <= 120_000
    assert client.get("/assets/none.js").status_code == 404
    assert client.get("/favicon.ico").status_code == 204 and "Disallow" in client.get("/robots.txt").text
    assert "unsafe-inline" not in client.get("/").headers["content-security-policy"]
