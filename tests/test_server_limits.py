"""What one client can take from the others: headers, connections, threads and time have limits, and a word for each."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest
import uvicorn
from fixtures import free_port

from server import connection
from server.app import create_app
from server.catalogue import open_catalogue
from server.middleware import admission
from server.routes import features, search
from server.run import settings

FEATURES = "/api/v1/dictionaries/tiny.first/features"


@contextmanager
def served(run, host_names=()):
    """Address of a server in a thread, with the settings of `sae serve`."""
    port = free_port()
    app = create_app(open_catalogue([run]), host_names=host_names)
    server = uvicorn.Server(uvicorn.Config(app, **settings("127.0.0.1", port)))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def connect(address):
    """A bare connection to the server."""
    return socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=10)


def read_all(client):
    """What the server sends until it closes; what it sent before a reset is lost."""
    data = b""
    with suppress(ConnectionResetError):
        while chunk := client.recv(65536):
            data += chunk
    return data


def error_of(answer):
    """Status and code of an error in a raw answer, which must have the shape and the headers of all errors."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-security-policy: default-src 'self'" in head and b"nosniff" in head
    error = json.loads(body)["error"]
    assert set(error) == {"code", "message"}
    return int(head.split()[1]), error["code"]


@pytest.mark.parametrize("n_bytes", [20_000, 60_000, 5_000_000])
def test_headers_have_a_largest_size(server, n_bytes):
    with connect(server) as client:
        with suppress(OSError):  # the server closes while the rest is still being sent
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * n_bytes)
        answer = read_all(client)
        if n_bytes < 5_000_000 or answer:
            assert error_of(answer) == (431, "headers_too_large")
    assert httpx.get(f"{server}{FEATURES}").status_code == 200


def test_what_is_no_request_is_refused_in_the_same_shape(server):
    for data in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"GET  /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
    ):
        with connect(server) as client:
            client.sendall(data)
            assert error_of(read_all(client)) == (400, "bad_request"), data


def test_slow_headers_are_closed_and_disturb_nobody(finished, monkeypatch):
    monkeypatch.setattr(connection, "REQUEST_S", 1.0)
    with served(finished) as address, ExitStack() as sockets:
        clients = [sockets.enter_context(connect(address)) for _ in range(50)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: local")
        end = time.monotonic() + 2.5
        while time.monotonic() < end:  # bytes that trickle in do not extend the deadline
            time.sleep(0.1)
            for client in clients:
                with suppress(OSError):
                    client.sendall(b"h")
            assert httpx.get(f"{address}/api/v1/dictionaries").status_code == 200
        assert all(map(is_closed, clients))


def test_a_body_that_nobody_wants_does_not_hold_the_connection(finished, monkeypatch):
    monkeypatch.setattr(connection, "REQUEST_S", 0.3)
    with served(finished) as address, connect(address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nx")
        assert client.recv(65536).startswith(b"HTTP/1.1 405")
        start = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - start < 10:
                client.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - start < 5


def test_a_reader_that_does_not_read_is_closed(finished, monkeypatch):
    monkeypatch.setattr(connection, "STALL_S", 0.5)
    with served(finished) as address, connect(address) as client:
        request = f"GET {FEATURES}?limit=200 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        start = time.monotonic()
        with pytest.raises(OSError):  # requests go out, answers are left unread
            while time.monotonic() - start < 10:
                client.sendall(request)
        assert httpx.get(f"{address}{FEATURES}").status_code == 200


def test_a_full_server_makes_room_for_those_who_ask(finished, monkeypatch):
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 10)
    with served(finished) as address, ExitStack() as sockets:
        idle = [sockets.enter_context(connect(address)) for _ in range(10)]
        for _ in range(3):
            assert httpx.get(f"{address}/api/v1/dictionaries").status_code == 200
        assert 1 <= sum(map(is_closed, idle)) <= 3


def is_closed(client):
    """Whether the server has closed the connection."""
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


class Held:
    """Requests for features, which wait until they are released."""

    def __init__(self, answer):
        self.answer, self.waiting, self.released = answer, threading.Semaphore(0), threading.Event()

    def __call__(self, *arguments, **options):
        self.waiting.release()
        assert self.released.wait(30)
        return self.answer(*arguments, **options)


@pytest.fixture
def held(monkeypatch):
    held = Held(features.filters.page)
    monkeypatch.setattr(features.filters, "page", held)
    yield held
    held.released.set()


def ask_and_wait(address, held, threads, n):
    """Futures of so many requests that are being answered."""
    requests = [threads.submit(httpx.get, f"{address}{FEATURES}", timeout=60) for _ in range(n)]
    for _ in requests:
        assert held.waiting.acquire(timeout=30)
    return requests


def test_more_requests_than_can_be_answered_are_told_to_come_back(finished, monkeypatch, held):
    monkeypatch.setattr(admission, "MOST", {"requests": 3, "downloads": 1})
    monkeypatch.setattr(admission, "WAIT_S", 0.2)
    with served(finished) as address, ThreadPoolExecutor() as threads:
        requests = ask_and_wait(address, held, threads, 3)
        refused = httpx.get(f"{address}/api/v1/dictionaries")
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "busy" and refused.headers["x-content-type-options"] == "nosniff"
        download = httpx.get(f"{address}/api/v1/dictionaries/tiny.first/download/card.json")
        assert download.status_code == 200  # downloads have places of their own
        held.released.set()
        assert [request.result().status_code for request in requests] == [200] * 3
        assert httpx.get(f"{address}/api/v1/dictionaries").status_code == 200


def test_a_full_server_of_busy_connections_says_so(finished, monkeypatch, held):
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 2)
    with served(finished) as address, ThreadPoolExecutor() as threads:
        requests = ask_and_wait(address, held, threads, 2)
        with connect(address) as client:
            assert error_of(read_all(client)) == (503, "busy")
        held.released.set()
        assert [request.result().status_code for request in requests] == [200] * 2


def test_a_query_that_takes_too_long_is_interrupted(finished, monkeypatch):
    monkeypatch.setattr(admission, "ANSWER_S", 0.3)

    def endless(store, *_, **__):
        numbers = "select sum(a.range * b.range) from range(10000000) a, range(10000000) b"
        return store.cursor().execute(numbers).fetchall()

    monkeypatch.setattr(search, "search", endless)
    with served(finished) as address:
        start = time.monotonic()
        answer = httpx.get(f"{address}/api/v1/dictionaries/tiny.first/search?q=cat", timeout=60)
        assert answer.status_code == 503 and "took too long" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"] == "1" and time.monotonic() - start < 10


def test_other_host_names_are_refused_on_every_route(server):
    with httpx.Client(base_url=server) as client:
        for path in ("/", "/api/v1/dictionaries", FEATURES, "/api/v1/openapi.json", "/assets/none.js", "/api/none"):
            for name in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "localhost@evil.example"):
                answer = client.get(path, headers={"host": name})
                assert answer.status_code in (400, 421), (path, name)
                assert set(answer.json()["error"]) == {"code", "message"} and "evil" not in answer.text
                assert answer.headers["x-content-type-options"] == "nosniff"
        for name in ("localhost", "LOCALHOST:8000", "127.0.0.1", "[::1]:80", "192.168.1.7:8000", "x.localhost"):
            assert client.get("/api/v1/dictionaries", headers={"host": name}).status_code == 200, name


def test_host_names_can_be_allowed(finished):
    with served(finished, ["gpu-box", "Explorer.example.org"]) as address:
        for name, status in (("gpu-box:8000", 200), ("explorer.example.org", 200), ("example.org", 421)):
            assert httpx.get(f"{address}/", headers={"host": name}).status_code == status, name
