"""The headers of every answer that keep hostile text harmless."""

from __future__ import annotations

import time
from collections.abc import Iterable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "content-security-policy": "default-src 'self'; style-src 'self'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class SafeHeaders:
    """Middleware that adds them, lets pages of `origins` show the explorer in a frame, and says how long the answer took; answers to bugs, which pass by all middleware, get them in `errors`."""

    def __init__(self, app: ASGIApp, origins: Iterable[str] = ()):
        self.app = app
        self.headers = HEADERS | {"content-security-policy": " ".join([HEADERS["content-security-policy"], *origins])}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                took = f"app;dur={(time.perf_counter() - started) * 1e3:.1f}"
                MutableHeaders(scope=message).update({**self.headers, "server-timing": took})
            await send(message)

        await self.app(scope, receive, send_with_headers)
