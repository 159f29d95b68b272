"""Bodies of requests, which are read up to a limit."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fastapi import Request

from server.errors import ApiError

MOST_BODY_BYTES = 1 << 16


async def json_body(
    request: Request, most_bytes: int = MOST_BODY_BYTES, *, parse: Callable[[bytes], Any] = json.loads
) -> Any:
    """What `parse` makes of the body; 413 if it is too large, 422 if it is no JSON."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > most_bytes:
            raise ApiError(413, f"the body may have {most_bytes:,} bytes")
    try:
        return parse(bytes(data))
    except (ValueError, RecursionError):
        raise ApiError(422, "a JSON body is wanted") from None
