"""Published dictionaries: the same bytes in every process, a card that guards itself, and servers that mean harm."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gzip
import hashlib
import http.server
import json
import shutil
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fixtures import make, published
from safetensors.torch import load_file, save

from feature_store.dictionary_files import CARD_SHA256
from sae.architectures import ARCHITECTURES
from sae.errors import ArtefactError, DiskError, SaedexError, UnavailableError
from sae.foundation import downloads
from sae.foundation.tensor_files import Piece, TensorFiles, save_tensors
from sae.publish import card as cards
from sae.publish import dictionary, download

WEIGHTS = "weights.safetensors"
SHARD = "weights-00000-of-00001.safetensors"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEDEX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return published(tmp_path_factory.mktemp("dictionary") / "x", "topk")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def changed(folder, **fields: Any) -> bytes:
    """The card of a folder with other fields and without the hash of itself: what a server may say."""
    card = json.loads((folder / "card.json").read_text())
    card.pop(CARD_SHA256, None)
    return json.dumps({**card, **fields}).encode()


def edit(folder, **fields: Any) -> None:
    (folder / "card.json").write_bytes(changed(folder, **fields))


class Server:
    """A server on this machine that answers `/download/NAME` with bytes, or however a function wants to."""

    def __init__(self, files: dict[str, bytes | Callable[[Any], None]]):
        self.files, self.asked = files, []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                name = self.path.rsplit("/", 1)[1]
                server.asked.append(name)
                answer = server.files[name]
                try:
                    if callable(answer):
                        answer(self)
                    else:
                        self.send_response(200)
                        self.send_header("content-length", str(len(answer)))
                        self.end_headers()
                        self.wfile.write(answer)
                except OSError:
                    pass  # the client had enough

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/api/v1/dictionaries/x"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def serve():
    """Starts servers that end with the test."""
    servers = []

    def start(files):
        servers.append(Server(files))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def files_of(folder) -> dict[str, bytes | Callable[[Any], None]]:
    return {name: (folder / name).read_bytes() for name in ("card.json", WEIGHTS)}


def left_in(cache) -> list[str]:
    """What lies in the cache besides empty lock files."""
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.stat().st_size) if cache.exists() else []


def test_equal_tensors_make_equal_bytes(tmp_path):
    tensors = {**make("topk").state_dict(), "part": Piece(torch.zeros(3, 2), 0, 0), "other": Piece(torch.ones(2), 0, 0)}
    hashes = {save_tensors(tmp_path / f"{i}.safetensors", dict(tensors)) for i in range(12)}
    hashes.add(save_tensors(tmp_path / "last.safetensors", dict(reversed(tensors.items()))))
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "pieces", ['{"a": [0, 3]}', '{"a": [2, 0]}', '{"a": [0, -1]}', '{"a": 1}', "[" * 10_000, "\x1b"]
)
def test_headers_that_speak_of_wrong_pieces_are_refused(tmp_path, pieces):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(4, 2)}, tmp_path / "a.safetensors", metadata={"pieces": pieces})
    with pytest.raises(ArtefactError, match="piece"):
        TensorFiles([tmp_path / "a.safetensors"])


@pytest.mark.parametrize(("second", "start"), [((3, 2), 3), ((3, 2), 5), ((3, 3), 4)])
def test_pieces_with_a_gap_an_overlap_or_another_width_are_refused(tmp_path, second, start):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_tensors(paths[0], {"a": Piece(torch.zeros(4, 2), 0, 0)})
    save_tensors(paths[1], {"a": Piece(torch.zeros(second), 0, start)})
    with pytest.raises(ArtefactError, match="the pieces before it end at 4"):
        TensorFiles(paths)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_architecture_is_loaded_as_it_was_published(tmp_path, name):
    sae = dictionary.load(published(tmp_path / "x", name))
    cards.read_card(tmp_path / "x").write(tmp_path / "x")  # what is written from what was read has the same hash
    again = dictionary.load(tmp_path / "x").state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in sae.state_dict().items())


def test_a_card_with_one_other_digit_is_refused_until_its_hash_is_taken_out(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "x")
    card = tmp_path / "x" / "card.json"
    text = card.read_text()
    assert text.count('"k": 5') == 1
    card.write_text(text.replace('"k": 5', '"k": 4'))
    with pytest.raises(ArtefactError, match=r"changed after it was written.*remove the line card_sha256"):
        dictionary.load(tmp_path / "x")
    edit(tmp_path / "x")
    assert dictionary.load(tmp_path / "x").config.k == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sae": {"architecture": "topk", "name": "x", "hook": "resid_post.0", "d_sae": 48, "k": 64}}, "k is 64"),
        ({"sae": {"architecture": "nonsense"}}, "architecture 'nonsense' is not known; known: batch_topk"),
        ({"sae": {}}, "architecture None"),
        ({"sae": {"architecture": ["topk"]}}, "is not known"),
        ({"d_model": 10**30}, "more than saedex can count"),
        ({"d_model": 0}, "d_model"),
        ({"d_model": 13}, r"W_enc is float32 \[12, 48\], not float32 \[13, 48\]"),
        ({"selection_dtype": "load"}, "selection_dtype"),
        ({"name": "../x"}, "name"),
        ({"weights_files": {}}, "it has no weights, only pages"),
        ({"weights_sha256": "0" * 64}, "SHA-256 is"),
    ],
)
def test_what_a_card_cannot_say_is_refused_with_the_reason(tmp_path, folder, fields, message):
    shutil.copytree(folder, tmp_path / "x")
    edit(tmp_path / "x", **fields)
    with pytest.raises(ArtefactError, match=message):
        dictionary.load(tmp_path / "x")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_or_of_another_type_are_refused(tmp_path, folder, number):
    shutil.copytree(folder, tmp_path / "x")
    tensors = load_file(folder / WEIGHTS)
    for b_dec, message in ((tensors["b_dec"] * number, "not finite"), (tensors["b_dec"].half(), "b_dec is float16")):
        data = save({**tensors, "b_dec": b_dec})
        (tmp_path / "x" / WEIGHTS).write_bytes(data)
        edit(tmp_path / "x", weights_sha256=sha256(data))
        with pytest.raises(ArtefactError, match=message):
            dictionary.load(tmp_path / "x")


def test_weights_are_downloaded_once(cache, folder, serve):
    server = serve(files_of(folder))
    for _ in range(2):
        assert torch.equal(dictionary.load(server.url).W_dec, dictionary.load(folder).W_dec)
    assert server.asked == ["card.json", WEIGHTS, "card.json"]
    (kept,) = cache.glob("dictionaries/*/card.json")
    assert kept.parent.name == sha256(kept.read_bytes()) and kept.read_bytes() == (folder / "card.json").read_bytes()


def test_a_dictionary_loads_where_a_loop_runs_already(cache, folder, serve):
    async def notebook():
        return dictionary.load(serve(files_of(folder)).url)

    assert torch.equal(asyncio.run(notebook()).W_dec, dictionary.load(folder).W_dec)


def test_weights_of_earlier_versions_are_read(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "x")
    data = save(load_file(folder / WEIGHTS), metadata={"format": "saedex", "pieces": "{}"})
    (tmp_path / "x" / WEIGHTS).write_bytes(data)
    edit(tmp_path / "x", weights_sha256=sha256(data))
    assert torch.equal(dictionary.load(tmp_path / "x").W_dec, dictionary.load(folder).W_dec)


@pytest.mark.parametrize(
    "name", ["../outside", "/tmp/outside", "..", "", "weights.safetensors/../../outside", f"./{SHARD}"]
)
def test_nothing_that_a_card_says_is_a_path(tmp_path, cache, folder, serve, name):
    weights = (folder / WEIGHTS).read_bytes()
    path = str(tmp_path / "home") if name.startswith("/") else name
    hashes = {path: sha256(weights)}
    for fields in (
        {"weights_sha256": path},
        {"weights_sha256": path, "weights_files": {SHARD: sha256(weights)}},
        {"weights_files": hashes, "weights_sha256": cards.joint_sha256(hashes)},
    ):
        server = serve({"card.json": changed(folder, **fields)})
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ArtefactError, match=r"weights_sha256|no weights"):
            dictionary.load(server.url)
        assert sorted(tmp_path.rglob("*")) == before and server.asked == ["card.json"]


def test_no_server_puts_weights_or_a_card_in_the_place_of_another_s(cache, folder, serve):
    truth, right = dictionary.load(folder), serve(files_of(folder))
    wrong_weights = save({name: tensor * 0 + 0.5 for name, tensor in load_file(folder / WEIGHTS).items()})
    shards = serve({"card.json": changed(folder, weights_files={SHARD: sha256(wrong_weights)}), SHARD: wrong_weights})
    with pytest.raises(ArtefactError, match="the hashes of its weights_files make"):
        dictionary.load(shards.url)
    with pytest.raises(ArtefactError, match=f"SHA-256 is {sha256(wrong_weights)}"):
        dictionary.load(serve({**right.files, WEIGHTS: wrong_weights}).url)
    assert left_in(cache) == []

    settings = {**json.loads((folder / "card.json").read_text())["sae"], "k": 1}
    assert dictionary.load(serve({**right.files, "card.json": changed(folder, sae=settings)}).url).config.k == 1
    assert dictionary.load(right.url).config.k == truth.config.k

    kept = cache / "dictionaries" / sha256((folder / "card.json").read_bytes())  # by somebody else on this machine
    (kept / "card.json").write_bytes(changed(folder, sae=settings))
    loaded = dictionary.load(right.url)
    assert loaded.config.k == truth.config.k and torch.equal(loaded.W_dec, truth.W_dec)


def endless(handler, data=b"a" * (1 << 16)):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(data)


def endless_header(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        handler.wfile.write(b"a" * (1 << 16))


def one_byte_at_a_time(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"a")
        time.sleep(0.02)


def header_at_a_time(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"x: y\r\n")
        time.sleep(0.02)


def packed(handler):
    handler.send_response(200)
    handler.send_header("content-encoding", "gzip")
    handler.end_headers()
    handler.wfile.write(gzip.compress(b'{"a": "' + b"a" * 10_000_000 + b'"}'))


def too_short(handler):
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b"{}")
    handler.close_connection = True


def pointing_to(address, body=b""):
    """An answer that points to an address, or to its own; with a body it goes on for ever."""

    def answer(handler):
        handler.send_response(302)
        handler.send_header("location", address or handler.path)
        handler.end_headers()
        while body:
            handler.wfile.write(body)

    return answer


@pytest.mark.parametrize("name", ["card.json", WEIGHTS])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (endless, "more than"),
        (endless_header, "the download failed"),
        (one_byte_at_a_time, "bytes came in"),
        (header_at_a_time, "bytes came in"),
        (packed, "is packed"),
        (too_short, "the download failed"),
        (pointing_to("file:///etc/passwd"), "points to file://"),
        (pointing_to(None, b"a" * (1 << 16)), "points on 5 times"),
        (lambda handler: handler.send_error(500), "the answer is 500"),
        (lambda handler: handler.wfile.write(b"\x00\xff\r\n\r\n"), "the download failed"),
    ],
)
def test_answers_have_limits_and_leave_nothing(cache, folder, serve, monkeypatch, name, answer, message):
    monkeypatch.setattr(download, "SECONDS", 0.4)
    monkeypatch.setattr(download, "LEAST_BYTES_PER_SECOND", 1e9)
    if answer not in (one_byte_at_a_time, header_at_a_time):
        monkeypatch.setattr(download, "SECONDS", 20.0)
    server = serve({**files_of(folder), name: answer})
    begin = time.monotonic()
    with pytest.raises(SaedexError, match=message) as refusal:
        dictionary.load(server.url)
    assert isinstance(refusal.value, ArtefactError if answer is endless else UnavailableError)
    assert time.monotonic() - begin < 10 and left_in(cache) == []
    assert not list(cache.rglob(".*.writing"))


def test_addresses_that_the_server_points_to_are_followed(cache, folder, serve):
    right = serve(files_of(folder))
    pointing = serve({name: pointing_to(f"{right.url}/download/{name}") for name in files_of(folder)})
    assert torch.equal(dictionary.load(pointing.url).W_dec, dictionary.load(folder).W_dec)


def test_no_address_leads_from_https_to_http(monkeypatch):
    import anyio
    import httpx

    async def answer():
        handler = httpx.MockTransport(lambda request: httpx.Response(302, headers={"location": "http://b/card.json"}))
        async with httpx.AsyncClient(transport=handler) as client, download._answer_of(client, "https://a/card.json"):
            pass

    with pytest.raises(UnavailableError, match="none from https to http"):
        anyio.run(answer)


def test_weights_that_no_disk_holds_are_refused_before_they_are_asked_for(cache, folder, serve):
    settings = json.loads((folder / "card.json").read_text())["sae"]
    server = serve(
        {
            **files_of(folder),
            "card.json": changed(folder, d_model=1 << 20, d_out=1 << 20, sae={**settings, "d_sae": 1 << 28}),
        }
    )
    with pytest.raises(DiskError, match="its weights take"):
        dictionary.load(server.url)
    assert server.asked == ["card.json"]


@pytest.mark.parametrize(
    "body", [b"[]", b"3", b"null", b'"x"', b"\xff", b"[" * 100_000, b'{"format_version": {}}', b"{}"]
)
def test_cards_that_are_none_are_refused(cache, serve, body):
    with pytest.raises(ArtefactError):
        dictionary.load(serve({"card.json": body}).url)


@pytest.mark.parametrize(
    "address", ["http://", "http://[::1", "http://a b", "http://\x00", "HTTP://user:secret@127.0.0.1:1/x"]
)
def test_bad_addresses_are_refused_and_passwords_not_shown(cache, address):
    with pytest.raises(UnavailableError) as refusal:
        dictionary.load(address)
    assert "secret" not in str(refusal.value)


def test_first_loads_at_once_share_one_download(cache, folder, serve):
    def slowly(handler):
        data = (folder / WEIGHTS).read_bytes()
        handler.send_response(200)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        for start in range(0, len(data), 1000):
            handler.wfile.write(data[start : start + 1000])
            time.sleep(0.05)

    left = cache / "dictionaries" / f".{sha256((folder / 'card.json').read_bytes())}.writing"  # by a killed process
    left.mkdir(parents=True)
    (left / "junk").write_text("junk")
    server = serve({**files_of(folder), WEIGHTS: slowly})
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        loaded = list(pool.map(dictionary.load, [server.url] * 3))
    assert all(torch.equal(sae.W_dec, loaded[0].W_dec) for sae in loaded)
    assert server.asked.count(WEIGHTS) == 1 and left_in(cache) == sorted(["card.json", WEIGHTS])


def test_an_archive_that_was_changed_in_the_cache_is_taken_again(cache, monkeypatch):
    asked = []

    def bring(_requirements, target, part):
        asked.append(part.name)
        target.mkdir()
        (target / "a.whl").write_bytes(b"right")

    monkeypatch.setattr(downloads, "_pip_download", bring)
    part = downloads.PackagePart(name="a", version="1", archive_sha256=sha256(b"right"), member="*")
    path = downloads.fetch_archive(part)
    assert downloads.fetch_archive(part) == path and asked == ["a"]
    path.write_bytes(b"wrong")
    assert downloads.fetch_archive(part).read_bytes() == b"right" and asked == ["a", "a"]


def test_an_archive_of_neither_kind_is_refused(tmp_path):
    (tmp_path / "a.whl").write_bytes(b"neither")
    part = downloads.PackagePart(
        name="a", version="1", archive_sha256=sha256(b"neither"), member="*", archive=tmp_path / "a.whl"
    )
    with pytest.raises(ArtefactError, match="neither a wheel"):
        list(downloads.open_members(part))
