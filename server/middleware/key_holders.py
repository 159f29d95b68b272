"""Lets those in who have a key; browsers ask their reader for name and key."""

from __future__ import annotations

import base64
import binascii

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from feature_store.people.database import People
from server import errors

OPEN = ("/healthz",)
ASK = {"www-authenticate": 'Basic realm="saedex: your name, and your key as the password", charset="UTF-8"'}


class KeyHolders:
    """Middleware that answers 401 to whoever has no key, as x-api-key, `Bearer KEY`, or the password of `Basic`.

    A browser sends `Basic` by itself, also where another page makes it; so it opens reading alone, and writing needs one
    of the other two (`server.people.person_of`).
    """

    def __init__(self, app: ASGIApp, people: People):
        self.app, self.people = app, people

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        key = key_of(Headers(scope=scope), with_password=True)
        if key and await anyio.to_thread.run_sync(self.people.person_of, key):
            await self.app(scope, receive, send)
            return
        message = (
            "reading needs a key here, in the header authorization: Bearer KEY; `sae people FILE add NAME` makes one"
        )
        await errors.answer(401, message, ASK)(scope, receive, send)


def key_of(headers: Headers, *, with_password: bool = False) -> str:
    """The key that comes with a request, empty if none does; that of `Basic` only if it is wanted."""
    scheme, _, value = headers.get("authorization", "").strip().partition(" ")
    if key := headers.get("x-api-key"):
        return key
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic" and with_password:
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""
