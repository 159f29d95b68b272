"""Conditional requests: whether the client has the answer already."""

from __future__ import annotations

import re

from starlette.requests import Request


def is_unchanged(request: Request, etag: str) -> bool:
    """Whether If-None-Match names the tag, or any by `*`; compared weakly (RFC 9110, sections 8.8.3.2 and 13.1.2)."""
    tags = ",".join(request.headers.getlist("if-none-match"))
    return tags.strip() == "*" or etag.removeprefix("W/") in re.findall(r'"[^"]*"', tags)
