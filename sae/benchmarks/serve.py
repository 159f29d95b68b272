"""`sae bench serve`: what a real server answers in a second over a real store, beside the framework's constant route."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from sae.errors import SaedexError

SECONDS = 3.0
CONNECTIONS = 16
CROWD = 256  # connections at once that are more than the server works for
PATIENCE_S = 60
CONSTANT = "constant bytes, FastAPI"
BATCH = 50


class Load(NamedTuple):
    """What clients saw of one route: answers a second, the server's CPU for each, latencies, and answers by status."""

    per_s: float
    cpu_s: float
    median_s: float
    p99_s: float
    statuses: dict[int, int]


class _Server(NamedTuple):
    process: subprocess.Popen[bytes]
    port: int
    first_answer_s: float  # after the process was started

    def cpu_s(self) -> float:
        """Processor time that the server has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        """Memory of its own that the server holds; pages of mapped files, which the system takes back, are not in it."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * 1024  # pyright: ignore[reportOptionalSubscript]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _answer(port: int, path: str) -> tuple[int, bytes]:
    with closing(HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
        answer = connection.getresponse()
        return answer.status, answer.read()


def _started(stack: ExitStack, *command: str) -> _Server:
    """A server process on a free port, which takes the place of PORT in the command, once it answers."""
    port = _free_port()
    arguments = [sys.executable, "-m", *(part.replace("PORT", str(port)) for part in command)]
    process = stack.enter_context(subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    stack.callback(process.terminate)
    started = time.monotonic()
    while True:
        try:
            _answer(port, "/healthz")
            return _Server(process, port, time.monotonic() - started)
        except OSError:
            if process.poll() is not None or time.monotonic() - started > PATIENCE_S:
                said = process.stderr.read().decode() if process.poll() is not None and process.stderr else "no answer"
                raise SaedexError(f"sae bench serve: the server did not start: {said.strip()}") from None
            time.sleep(0.01)


async def _client(port: int, paths: list[str], end: float, answers: list[tuple[float, int]]) -> None:
    """Asks for the paths in turn over one kept connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    turn = 0
    while (start := time.perf_counter()) < end:
        path = paths[turn % len(paths)]
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))
        answers.append((time.perf_counter() - start, int(head.split()[1])))
        turn += 1
    writer.close()
    await writer.wait_closed()


async def _clients(port: int, paths: list[str], n: int) -> list[tuple[float, int]]:
    answers: list[tuple[float, int]] = []
    end = time.perf_counter() + SECONDS
    await asyncio.gather(*(_client(port, paths[k % len(paths) :] + paths, end, answers) for k in range(n)))
    return answers


def _load(server: _Server, paths: list[str], n: int = CONNECTIONS) -> Load:
    """What `n` clients see that ask for the paths in turn; the server and they share the machine."""
    before = server.cpu_s()
    answers = asyncio.run(_clients(server.port, paths, n))
    cpu = server.cpu_s() - before
    took = sorted(seconds for seconds, _ in answers)
    statuses = Counter(status for _, status in answers)
    return Load(
        len(took) / SECONDS, cpu / len(took), took[len(took) // 2], took[int(len(took) * 0.99)], statuses=dict(statuses)
    )


def _routes(port: int) -> dict[str, list[str]]:
    listed = json.loads(_answer(port, "/api/v1/dictionaries")[1])
    home, n = f"/api/v1/dictionaries/{quote(listed[0]['id'], safe='')}", listed[0]["features"]
    sampled = [f * n // 256 for f in range(min(256, n))]
    batches = [",".join(str((f + k) % n) for k in range(BATCH)) for f in sampled[:16]]
    return {
        "one feature, 256 in turn": [f"{home}/features/{f}" for f in sampled],
        "its contexts, 256 in turn": [f"{home}/features/{f}/contexts" for f in sampled],
        "50 features at once": [f"{home}/features?ids={ids}" for ids in batches],
        "the table, a filter and a sort": [f"{home}/features?limit=50&sort=low&order=desc&min_density=0.0001"],
        "the table, two sorts": [f"{home}/features?limit=50&sort=low,density&order=desc"],
        "search in labels": [f"{home}/search?q=the&kind=label"],
        "search by token": [f"{home}/search?q=the&kind=current"],
        "search by promoted token": [f"{home}/search?q=the&kind=promoted"],
    }


def measure(path: Path) -> dict[str, Any]:
    """Figures of the routes for the dictionary or run folder at `path`, from servers started for this."""
    with ExitStack() as stack:
        server = _started(stack, "sae.cli", "serve", str(path), "--port", "PORT")
        routes = _routes(server.port)
        page = len(_answer(server.port, routes["one feature, 256 in turn"][0])[1])
        constant = _started(stack, "server.constant_route", "PORT", str(page))
        loads = {CONSTANT: _load(constant, ["/constant/x/features/3"])}
        loads |= {name: _load(server, paths) for name, paths in routes.items()}
        crowd = _load(server, routes["search by token"], CROWD)
        wrong = {name: load.statuses for name, load in loads.items() if set(load.statuses) != {200}}
        if wrong or set(crowd.statuses) - {200, 503}:
            raise SaedexError(f"sae bench serve: some requests failed (status: number): {wrong or crowd.statuses}.")
        return {
            "connections": CONNECTIONS,
            "first_answer_s": server.first_answer_s,
            "memory_bytes": server.memory_bytes(),
            "routes": {name: load._asdict() for name, load in loads.items()},
            "crowd": {"connections": CROWD, **crowd._asdict()},
        }


def table(measured: dict[str, Any]) -> str:
    """The measurements as a Markdown table, each against the constant route."""
    routes = measured["routes"]
    floor = routes[CONSTANT]["per_s"]
    lines = [
        f"{measured['connections']} connections; the server and its clients share the machine.",
        "",
        "| | requests/s | of the constant route | CPU ms | median ms | 99 % ms |",
        "|---|---|---|---|---|---|",
    ]

    for name, figures in routes.items():
        lines.append(
            f"| {name} | {figures['per_s']:,.0f} | {figures['per_s'] / floor:.2f} | {figures['cpu_s'] * 1e3:.2f} "
            f"| {figures['median_s'] * 1e3:.1f} | {figures['p99_s'] * 1e3:.1f} |"
        )

    crowd = measured["crowd"]
    statuses = ", ".join(f"{n:,} of {status}" for status, n in sorted(crowd["statuses"].items()))
    return "\n".join(
        [
            *lines,
            "",
            f"{crowd['connections']} connections that search at once: answers {statuses}.",
            f"First answer {measured['first_answer_s']:.2f} s after the start; {measured['memory_bytes'] / 1e6:.0f} MB in the end.",
        ]
    )
