"""How many requests are worked on at once, and for how long: the rest is told at once to come back."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from feature_store.cursors import Cursors
from server import errors

MOST = {
    "requests": 64,  # what is more would wait for longer than people do
    "downloads": 16,  # each holds its files open, dictionary.zip some twenty
}
ANSWER_S = 20.0  # after this a query is interrupted


def is_download(scope: Scope) -> bool:
    """Whether the request is for a file of a dictionary, which may take as long as its reader needs."""
    return "/download/" in scope.get("path", "")


class Admission:
    """Middleware in front of the worker threads: 503 with Retry-After once so many requests are being answered.

    Queries of a request that takes longer than `ANSWER_S` are interrupted, so that its thread is free again.
    """

    def __init__(self, app: ASGIApp):
        self.app = app
        self.busy = dict.fromkeys(MOST, 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        kind = "downloads" if is_download(scope) else "requests"
        if self.busy[kind] >= MOST[kind]:
            message = f"{MOST[kind]} {kind} are being answered already; try again in a second"
            await errors.answer(503, message, errors.RETRY)(scope, receive, send)
            return

        self.busy[kind] += 1
        with Cursors() as cursors:
            deadline = asyncio.get_running_loop().call_later(ANSWER_S, cursors.interrupt)
            try:
                await self.app(scope, receive, send)
            finally:
                deadline.cancel()
                self.busy[kind] -= 1
