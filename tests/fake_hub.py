"""A server that speaks as much of the Hugging Face hub's HTTP protocol as downloads and uploads need, and fails on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (
    ".safetensors",
    ".pt",
    ".npz",
    ".duckdb",
    ".pages",
    ".parquet",
    ".png",
)  # what the hub keeps in LFS, with a SHA-256


@dataclass
class Hub:
    """Repositories in folders OWNER/NAME; what is asked is written down, and some of it goes wrong."""

    root: Path
    address: str = ""
    gated: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)  # files whose content is another one than their hash says
    interrupted: set[str] = field(default_factory=set)  # files of which the first answer ends in the middle
    asked: list[str] = field(default_factory=list)
    account: str | None = None  # the token of who may write; None: nobody may
    objects: dict[str, bytes] = field(default_factory=dict)  # large files that were sent, by their SHA-256


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0].strip("/")
        self.hub.asked.append(f"{self.command} {path}")
        if match := re.fullmatch(r"api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._repository(match[1], match[2])
        elif match := re.fullmatch(r"api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self._repository(match[1], match[2], tree=True)
        elif match := re.fullmatch(r"([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3], with_body=with_body)
        else:
            self._refuse(404, "RepoNotFound")

    def do_POST(self) -> None:
        path = self.path.split("?")[0].strip("/")
        self.hub.asked.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        if not self.hub.account or self.headers.get("authorization") != f"Bearer {self.hub.account}":
            self._send(403, b'{"error": "Forbidden"}', {"content-type": "application/json"})
        elif path == "api/validate-yaml":  # the front matter of README.md
            self._send_json({"errors": [], "warnings": []})
        elif path == "api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'ada'}/{wanted['name']}"
            (self.hub.root / repo).mkdir(parents=True, exist_ok=True)
            self._send_json({"url": f"{self.hub.address}/{repo}"})
        elif re.fullmatch(r"api/models/[^/]+/[^/]+/preupload/main", path):
            files = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                 "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            self._send_json({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [self._upload_of(item) for item in json.loads(body)["objects"]]
            self._send_json({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(self.hub.root / match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._refuse(404, "EntryNotFound")

    def do_PUT(self) -> None:
        oid = self.path.rpartition("/")[2]
        body = self.rfile.read(int(self.headers["content-length"]))
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.hub.asked.append(f"PUT {oid}")
        self._send(200, b"", {})

    def _upload_of(self, item: dict[str, Any]) -> dict[str, Any]:
        has_it = item["oid"] in self.hub.objects
        href = {"upload": {"href": f"{self.hub.address}/objects/{item['oid']}"}}
        return {**item, **({} if has_it else {"actions": href})}

    def _commit(self, folder: Path, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] not in ("file", "lfsFile"):
                continue
            path = folder / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            data = self.hub.objects[value["oid"]] if line["key"] == "lfsFile" else base64.b64decode(value["content"])
            path.write_bytes(data)
        self._send_json({"commitUrl": f"{self.hub.address}/{folder.parent.name}/{folder.name}/commit/{COMMIT}",
                         "commitOid": COMMIT})  # fmt: skip

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"content-type": "application/json"})

    def _known(self, repo: str, revision: str | None) -> bool:
        if repo in self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif not (self.hub.root / repo).is_dir():
            self._refuse(404, "RepoNotFound")
        elif revision not in (None, "main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        else:
            return True
        return False

    def _repository(self, repo: str, revision: str | None, tree: bool = False) -> None:
        if not self._known(repo, revision):
            return
        files = sorted(p for p in (self.hub.root / repo).rglob("*") if p.is_file())
        names = [p.relative_to(self.hub.root / repo).as_posix() for p in files]
        if tree:
            body: Any = [
                {"type": "file", "path": name, "size": p.stat().st_size, "oid": _etag(p)}
                for name, p in zip(names, files, strict=True)
            ]
        else:
            body = {"id": repo, "modelId": repo, "sha": COMMIT, "private": False, "gated": False, "tags": [], "downloads": 0,
                    "likes": 0, "siblings": [{"rfilename": name} for name in names]}  # fmt: skip
        self._send(200, json.dumps(body).encode(), {"content-type": "application/json"})

    def _file(self, repo: str, revision: str, name: str, *, with_body: bool) -> None:
        if not self._known(repo, revision):
            return
        path = self.hub.root / repo / name
        if not path.is_file():
            self._refuse(404, "EntryNotFound")
            return
        data, etag = path.read_bytes(), _etag(path)
        if name in self.hub.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        headers = {"etag": f'"{etag}"', "x-repo-commit": COMMIT, "accept-ranges": "bytes"}
        if path.suffix in LARGE:
            headers |= {"x-linked-etag": f'"{etag}"', "x-linked-size": str(len(data))}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if span:
            start, end = int(span[1]), int(span[2] or len(data) - 1)
            headers["content-range"] = f"bytes {start}-{end}/{len(data)}"
            self._send(206, data[start : end + 1], headers, with_body=with_body)
        elif with_body and name in self.hub.interrupted:
            self.hub.interrupted.remove(name)
            self._send(200, data, headers, stop_at=len(data) // 2)
        else:
            self._send(200, data, headers, with_body=with_body)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"x-error-code": code, "x-error-message": code})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool = True, stop_at: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(body[:stop_at])
            self.close_connection = stop_at is not None


def _etag(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix in LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


@contextmanager
def serving_hub(root: Path) -> Iterator[Hub]:
    """A hub over the repositories in a folder, for the time of the block."""
    hub = Hub(root)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
