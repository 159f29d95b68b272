"""What routes share: finding the dictionary, refusing unknown parameters, HEAD, encoding JSON with an ETag."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import orjson
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from server.catalogue import Catalogue, Entry
from server.conditions import is_unchanged
from server.edition import Edition
from server.errors import ApiError


class ReadRouter(APIRouter):
    """A router whose every route answers HEAD as well as GET."""

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **settings: Any) -> None:
        """Adds the route for both methods; the API's document speaks of GET alone."""
        super().add_api_route(path, endpoint, **settings)
        super().add_api_route(path, endpoint, **{**settings, "methods": ["HEAD"], "include_in_schema": False})


def entry_of(request: Request, dictionary: str) -> Entry:
    """The dictionary of that id; 404 with the nearest id otherwise."""
    catalogue: Catalogue = request.app.state.catalogue
    if dictionary in catalogue:
        return catalogue[dictionary]

    if any(damage.id == dictionary for damage in catalogue.damage):
        raise ApiError(404, "this dictionary is damaged and is left out; see /api/v1/damage")
    near = difflib.get_close_matches(dictionary, catalogue, n=1)
    hint = f"; did you mean {near[0]}?" if near else "; see /api/v1/dictionaries"
    raise ApiError(404, f"no such dictionary{hint}")


def edition_of(request: Request, dictionary: str) -> Edition:
    """The newest edition of a dictionary: a request takes it once, so that its answer is of one generation."""
    return entry_of(request, dictionary).edition()


def _refuse_unknown(request: Request) -> None:
    allowed = {p.alias for p in request.scope["route"].dependant.query_params}
    unknown = [name for name in request.query_params if name not in allowed]
    if unknown:
        raise ApiError(422, f"unknown parameter; known here: {', '.join(sorted(allowed)) or 'none'}")


known_parameters = Depends(_refuse_unknown)


def json_response(body: Any, edition: Edition | None = None, request: Request | None = None) -> Response:
    """`body` as JSON; of an edition also with its ETag, and 304 if the client has it already."""
    headers = {}
    if edition is not None and request is not None:
        # Weak: the bytes are other ones where they are sent compressed.
        headers = {"etag": f'W/"{edition.tag}"', "cache-control": "no-cache"}
        if is_unchanged(request, headers["etag"]):
            return Response(status_code=304, headers=headers | {"vary": "Accept-Encoding"})
    return Response(orjson.dumps(body), media_type="application/json", headers=headers)
