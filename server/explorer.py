"""The files of the explorer, compressed once when the server starts."""

from __future__ import annotations

import gzip
import mimetypes
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from server.errors import ApiError

NO_UI = "<!doctype html><title>saedex</title><p>The explorer was not built into this installation. The API is at <a href='api/v1/dictionaries'>api/v1/dictionaries</a>; install saedex from a wheel, or run <code>make ui</code>."
FOREVER = "public, max-age=31536000, immutable"  # the names of assets hold hashes of their content


class _Asset(NamedTuple):
    body: bytes
    compressed: bytes
    media_type: str


class Explorer:
    """The explorer's page, and the assets that it names."""

    def __init__(self, static: Path):
        index = static / "index.html"
        self.page = index.read_text("utf-8") if index.is_file() else NO_UI
        self._assets = {path.name: _asset(path) for path in sorted((static / "assets").glob("*")) if path.is_file()}

    def asset(self, request: Request, name: str) -> Response:
        """One asset, compressed if the client takes that; raises `ApiError` if there is none of that name."""
        asset = self._assets.get(name)
        if asset is None:
            raise ApiError(404, "no such file of the explorer")
        headers = {"cache-control": FOREVER, "vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            return Response(asset.compressed, media_type=asset.media_type, headers=headers)
        return Response(asset.body, media_type=asset.media_type, headers=headers)

    def answer(self) -> Response:
        """The page."""
        return HTMLResponse(self.page, headers={"cache-control": "no-cache"})


def _asset(path: Path) -> _Asset:
    body = path.read_bytes()
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return _Asset(body, gzip.compress(body, 9, mtime=0), kind)
