"""A response made of parts, bytes or open files, of which a range can be sent."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from io import FileIO

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server.conditions import is_unchanged
from server.errors import ApiError

CHUNK_BYTES = 256 << 10


@dataclass(frozen=True)
class FilePart:
    """An open file."""

    file: FileIO
    size: int

    def __len__(self) -> int:
        return self.size


Part = bytes | FilePart


def length_of(parts: list[Part]) -> int:
    """Bytes of all parts."""
    return sum(len(part) for part in parts)


class PartsResponse(StreamingResponse):
    """Sends a range of the parts, and closes their files whatever happens."""

    def __init__(self, parts: list[Part], span: range, status: int, headers: dict[str, str]):
        super().__init__(_pieces(parts, span), status, headers)
        self.parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            close(self.parts)


def close(parts: list[Part]) -> None:
    """Closes the files among the parts."""
    for part in parts:
        if isinstance(part, FilePart):
            part.file.close()


async def _pieces(parts: list[Part], span: range) -> AsyncIterator[bytes]:
    """The bytes of a range of all parts, a chunk at a time."""
    begin = 0
    for part in parts:
        place, stop = max(span.start - begin, 0), min(span.stop - begin, len(part))
        begin += len(part)
        while place < stop:
            n_bytes = min(stop - place, CHUNK_BYTES)
            if isinstance(part, bytes):
                chunk = part[place : place + n_bytes]
            else:
                chunk = await anyio.to_thread.run_sync(os.pread, part.file.fileno(), n_bytes, place)
            if not chunk:
                raise OSError("a file became shorter while it was sent")
            place += len(chunk)
            yield chunk


def respond(request: Request, parts: list[Part], etag: str, headers: dict[str, str]) -> Response:
    """The parts, or 304 if the client has them, or the range it wants (RFC 9110, sections 13 and 14)."""
    size = length_of(parts)
    headers = {**headers, "etag": etag, "accept-ranges": "bytes", "cache-control": "no-cache"}
    try:
        if is_unchanged(request, etag):
            close(parts)
            return Response(status_code=304, headers=headers)
        span = _wanted(request, etag, size)
    except ApiError:
        close(parts)
        raise

    sent = range(0) if request.method == "HEAD" else span or range(size)
    if span is None:
        return PartsResponse(parts, sent, 200, headers | {"content-length": str(size)})
    place = {"content-range": f"bytes {span.start}-{span.stop - 1}/{size}", "content-length": str(len(span))}
    return PartsResponse(parts, sent, 206, headers | place)


def _wanted(request: Request, etag: str, size: int) -> range | None:
    """The range that a GET wants; None for everything, as also for several ranges and other units."""
    header = request.headers.get("range")
    if header is None or request.method != "GET" or request.headers.get("if-range", etag) != etag:
        return None

    unit, _, numbers = header.partition("=")
    if unit.strip().lower() != "bytes" or "," in numbers:
        return None

    match = re.fullmatch(r"\s*(\d{0,100})-(\d{0,100})\s*", numbers)
    first, last = match.groups() if match else ("", "")
    if not (first or last) or (first and last and int(first) > int(last)):
        raise ApiError(400, "Range: bytes=FIRST-LAST, bytes=FIRST- or bytes=-LENGTH is wanted")

    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        raise ApiError(416, f"the file has {size} bytes", {"content-range": f"bytes */{size}"})
    return range(start, stop)
