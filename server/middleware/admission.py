"""How many requests are worked on at once, and for how long; the others wait a moment, or are told to come back."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from feature_store.cursors import Cursors
from server import errors

MOST = {
    "requests": 16,  # at once
    "downloads": 16,  # each holds its files open, dictionary.zip some twenty
}
WAIT_S = 1.0  # for a place among them
ANSWER_S = 20.0  # for a query; then it is interrupted


def is_download(scope: Scope) -> bool:
    """Whether the request is for a file of a dictionary, which may take as long as its reader needs."""
    return "/download/" in scope.get("path", "")


class Admission:
    """Middleware in front of the worker threads: who gets no place in `WAIT_S` is told to come back (503, Retry-After).

    Those who wait cost nothing, and are never more than there are connections. Queries of a request that takes longer
    than `ANSWER_S` are interrupted, so that its thread is free again.
    """

    def __init__(self, app: ASGIApp):
        self.app = app
        self.places = {kind: asyncio.Semaphore(most) for kind, most in MOST.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        kind = "downloads" if is_download(scope) else "requests"
        try:
            async with asyncio.timeout(WAIT_S):
                await self.places[kind].acquire()
        except TimeoutError:
            message = f"{MOST[kind]} {kind} are being answered already; try again in a second"
            await errors.answer(503, message, errors.RETRY)(scope, receive, send)
            return

        with Cursors() as cursors:
            deadline = asyncio.get_running_loop().call_later(ANSWER_S, cursors.interrupt)
            try:
                await self.app(scope, receive, send)
            finally:
                deadline.cancel()
                self.places[kind].release()
