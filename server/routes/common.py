"""What routes share: finding the dictionary, refusing unknown parameters, encoding JSON with an ETag."""

from __future__ import annotations

import difflib
from typing import Any

import orjson
from fastapi import Depends, Request
from fastapi.responses import Response

from server.catalogue import Entry
from server.errors import ApiError


def entry_of(request: Request, dictionary: str) -> Entry:
    """The dictionary of that id; 404 with the nearest id otherwise."""
    entries: dict[str, Entry] = request.app.state.catalogue
    if dictionary not in entries:
        near = difflib.get_close_matches(dictionary, entries, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; see /api/v1/dictionaries"
        raise ApiError(404, f"no such dictionary{hint}")
    return entries[dictionary]


def _refuse_unknown(request: Request) -> None:
    allowed = {p.alias for p in request.scope["route"].dependant.query_params}
    unknown = [name for name in request.query_params if name not in allowed]
    if unknown:
        raise ApiError(422, f"unknown parameter; known here: {', '.join(sorted(allowed)) or 'none'}")


known_parameters = Depends(_refuse_unknown)


def json_response(body: Any, generation: str | None = None, request: Request | None = None) -> Response:
    """`body` as JSON; with a generation also an ETag, and 304 if the client has it already."""
    headers = {}
    if generation is not None and request is not None:
        headers = {"etag": f'"{generation}"', "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
    return Response(orjson.dumps(body), media_type="application/json", headers=headers)
