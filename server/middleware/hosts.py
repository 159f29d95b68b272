"""The host names that the server answers to, so that a page of another site cannot read it under a name of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server import errors

HOST = re.compile(r"[a-z0-9._:-]+")  # a name, or an address without its brackets


class KnownHosts:
    """Middleware that refuses requests for other hosts: 400 without a host that can be read, 421 for a strange one.

    A site can point its own name at this machine and then read the answers in a visitor's browser (DNS rebinding), but
    the browser says that name. Addresses are allowed: nobody else's page is at an address of this machine.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]):
        self.app = app
        self.names = {"localhost", *filter(None, map(host_of, names))}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = _host(scope)
        if host is None:
            await errors.answer(400, "one valid Host header is wanted")(scope, receive, send)
        elif self._is_known(host):
            await self.app(scope, receive, send)
        else:
            message = "the server does not answer to this host name; start it with --allow-host NAME to allow it"
            await errors.answer(421, message)(scope, receive, send)

    def answers(self, scope: Scope) -> bool:
        """Whether the request is for a host that is answered."""
        host = _host(scope)
        return host is not None and self._is_known(host)

    def _is_known(self, host: str) -> bool:
        return host in self.names or host.endswith(".localhost") or is_address(host)


def _host(scope: Scope) -> str | None:
    headers = Headers(scope=scope).getlist("host")
    return host_of(headers[0]) if len(headers) == 1 else None


@lru_cache(1024)
def host_of(header: str) -> str | None:
    """The host in a Host header without its port, in lower case; None if it cannot be read."""
    try:
        parts = urlsplit(f"//{header}")
        is_whole = parts.netloc == header and parts.port != 0
    except ValueError:
        return None
    return parts.hostname if is_whole and HOST.fullmatch(parts.hostname or "") and parts.username is None else None


@lru_cache(1024)
def is_address(host: str) -> bool:
    """Whether it is an IP address and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
