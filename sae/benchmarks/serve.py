"""`sae bench serve`: requests per second of a real server over a real store, beside a plain file."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sae.errors import SaedexError

SECONDS = 3.0
CLIENTS = 4
PATIENCE_S = 60


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _answer(connection: HTTPConnection, path: str) -> tuple[int, bytes]:
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def _load(port: int, paths: list[str]) -> dict[str, Any]:
    """Requests per second and latencies in seconds of clients that request the paths in turn over kept connections."""
    took: list[float] = []
    failures: list[int] = []
    end = time.perf_counter() + SECONDS

    def client(number: int) -> None:
        connection, turn = HTTPConnection("127.0.0.1", port), number
        while (start := time.perf_counter()) < end:
            status, _ = _answer(connection, paths[turn % len(paths)])
            took.append(time.perf_counter() - start)
            if status != 200:
                failures.append(status)
            turn += CLIENTS
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()

    for thread in threads:
        thread.join()

    if failures:
        raise SaedexError(
            f"sae bench serve: {len(failures)} of {len(took)} requests of {paths[0]} failed (status {failures[0]})."
        )

    cuts = statistics.quantiles(took, n=100)

    return {"per_s": len(took) / SECONDS, "median_s": cuts[49], "p99_s": cuts[98]}


def measure(path: Path) -> dict[str, Any]:
    """Figures of every route for the dictionary or run folder at `path`, from a server started for this."""
    port = _free_port()
    command = [sys.executable, "-m", "sae.cli", "serve", str(path), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    try:
        started = time.monotonic()
        while True:
            try:
                with closing(HTTPConnection("127.0.0.1", port)) as connection:
                    listed = json.loads(_answer(connection, "/api/v1/dictionaries")[1])
                break
            except OSError:
                if server.poll() is not None or time.monotonic() - started > PATIENCE_S:
                    server_message = (
                        server.stderr.read().decode() if server.poll() is not None and server.stderr else "no answer"
                    )
                    raise SaedexError(f"sae bench serve: the server did not start: {server_message.strip()}") from None
                time.sleep(0.1)
        home, n_features = f"/api/v1/dictionaries/{quote(listed[0]['id'], safe='')}", listed[0]["features"]
        sampled_features = [f * n_features // 256 for f in range(min(256, n_features))]
        routes = {
            "the explorer's page (a file)": ["/"],
            "one feature, all of 256 in turn": [f"{home}/features/{f}" for f in sampled_features],
            "a page of features": [f"{home}/features?limit=50&offset={f}" for f in sampled_features[:16]],
            "a search by token": [f"{home}/search?q=the&kind=current"],
        }
        return {"clients": CLIENTS, "routes": {label: _load(port, paths) for label, paths in routes.items()}}
    finally:
        server.terminate()
        server.communicate()


def table(measured: dict[str, Any]) -> str:
    """The measurements as a Markdown table, each against the plain file."""
    routes = measured["routes"]
    floor = next(iter(routes.values()))["per_s"]
    lines = [
        f"{measured['clients']} clients, kept connections.",
        "",
        "| | requests/s | against the first | median ms | 99 % ms |",
        "|---|---|---|---|---|",
    ]

    for name, figures in routes.items():
        lines.append(
            f"| {name} | {figures['per_s']:,.0f} | {figures['per_s'] / floor:.2f} | {figures['median_s'] * 1e3:.1f} "
            f"| {figures['p99_s'] * 1e3:.1f} |"
        )

    return "\n".join(lines)
