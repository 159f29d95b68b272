"""Pages of features that are answered as they lie in the file, in front of everything that takes time."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

from server.catalogue import Catalogue
from server.middleware.headers import HEADERS
from server.middleware.hosts import KnownHosts

PAGE = re.compile(r"/api/v1/dictionaries/([^/]+)/features/(\d{1,9})(/contexts)?")
KINDS = {None: "feature_pages", "/contexts": "context_pages"}
FIXED = [(name.encode(), value.encode()) for name, value in HEADERS.items()] + [
    (b"content-type", b"application/json"),
    (b"content-encoding", b"gzip"),
    (b"vary", b"Accept-Encoding"),
    (b"cache-control", b"no-cache"),
]


class ReadyPages:
    """Middleware that answers a GET for a page that is ready, by a client that takes gzip and asks for nothing else.

    Everything else goes on to the routes, which answer the same for those that come there; a test compares both.
    """

    def __init__(self, app: ASGIApp, catalogue: Catalogue, names: Iterable[str]):
        self.app, self.catalogue = app, catalogue
        self.hosts = KnownHosts(app, names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = self._page(scope) if scope["type"] == "http" else None
        if page is None:
            await self.app(scope, receive, send)
            return
        body, tag = page
        headers = [*FIXED, (b"content-length", b"%d" % len(body)), (b"etag", b'W/"%s"' % tag.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _page(self, scope: Scope) -> tuple[bytes, str] | None:
        """The compressed body and the tag of its edition; None for what is not as simple as that."""
        match = PAGE.fullmatch(scope["path"])
        if match is None or scope["method"] != "GET" or scope["query_string"]:
            return None
        headers = dict(scope["headers"])
        is_plain = b"if-none-match" not in headers and b"origin" not in headers
        if not is_plain or b"gzip" not in headers.get(b"accept-encoding", b"") or not self.hosts.answers(scope):
            return None

        entry, number = self.catalogue.get(unquote(match[1])), int(match[2])
        if entry is None or not entry.is_current():
            return None
        edition = entry.edition()
        pages = edition.store.pages[KINDS[match[3]]]
        return (pages.member(number), edition.tag) if pages is not None and number < len(pages) else None
