"""What routes share: finding the dictionary, refusing unknown parameters, HEAD, encoding JSON with an ETag."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Annotated, Any

import anyio.to_thread
import orjson
from fastapi import APIRouter, Depends, Path, Request
from fastapi.dependencies.models import Dependant
from fastapi.responses import Response

from feature_store.lookup.pages import Pages
from server.catalogue import Catalogue, Entry
from server.conditions import is_unchanged
from server.edition import Edition
from server.errors import ApiError

DictionaryId = Annotated[str, Path(description="Id of a dictionary.", examples=["quickstart.resid-4096"])]
FeatureId = Annotated[int, Path(description="Number of the feature.", examples=[1500])]


class ReadRouter(APIRouter):
    """A router whose every route that answers GET answers HEAD too."""

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **settings: Any) -> None:
        """Adds the route, for HEAD too; the API's document speaks of GET alone."""
        super().add_api_route(path, endpoint, **settings)
        if "GET" in settings["methods"]:
            super().add_api_route(path, endpoint, **{**settings, "methods": ["HEAD"], "include_in_schema": False})


def entry_of(request: Request, dictionary: str) -> Entry:
    """The dictionary of that id; 404 with the nearest id otherwise."""
    catalogue: Catalogue = request.app.state.catalogue
    entry = catalogue.get(dictionary)
    if entry is not None:
        return entry

    if any(damage.id == dictionary for damage in catalogue.damage):
        raise ApiError(404, "this dictionary is damaged and is left out; see /api/v1/damage")
    near = difflib.get_close_matches(dictionary, catalogue, n=1)
    hint = f"; did you mean {near[0]}?" if near else "; see /api/v1/dictionaries"
    raise ApiError(404, f"no such dictionary{hint}")


def edition_of(request: Request, dictionary: str) -> Edition:
    """The newest edition of a dictionary: a request takes it once, so that its answer is of one generation."""
    return entry_of(request, dictionary).edition()


async def edition_soon(request: Request, dictionary: str) -> Edition:
    """`edition_of` for a route that no thread answers: files that changed are read in one."""
    entry = entry_of(request, dictionary)
    return entry.edition() if entry.is_current() else await anyio.to_thread.run_sync(entry.edition)


def _query_names(dependant: Dependant) -> set[str]:
    names = {parameter.alias for parameter in dependant.query_params}
    return names.union(*map(_query_names, dependant.dependencies))


async def _refuse_unknown(request: Request) -> None:
    if not request.query_params:
        return
    allowed = _query_names(request.scope["route"].dependant)
    unknown = [name for name in request.query_params if name not in allowed]
    if unknown:
        raise ApiError(422, f"unknown parameter; known here: {', '.join(sorted(allowed)) or 'none'}")


known_parameters = Depends(_refuse_unknown)


def headers_of(edition: Edition) -> dict[str, str]:
    """The headers of an answer that is the same as long as the edition is."""
    # Weak: the bytes are other ones where they are sent compressed.
    return {"etag": f'W/"{edition.tag}"', "cache-control": "no-cache"}


def json_response(body: Any, edition: Edition | None = None, request: Request | None = None) -> Response:
    """`body` as JSON; of an edition also with its ETag, and 304 if the client has it already."""
    headers = {}
    if edition is not None and request is not None:
        headers = headers_of(edition)
        if is_unchanged(request, headers["etag"]):
            return Response(status_code=304, headers=headers | {"vary": "Accept-Encoding"})
    return Response(orjson.dumps(body), media_type="application/json", headers=headers)


def never_kept(body: Any) -> Response:
    """`body` as JSON that nobody keeps: what people say changes from one moment to the next, and differs by who asks."""
    response = json_response(body)
    response.headers["cache-control"] = "no-store"
    return response


def page_response(pages: Pages, number: int, edition: Edition, request: Request) -> Response:
    """A body that was made at publication, as it lies in the file if the client takes gzip."""
    headers = headers_of(edition) | {"vary": "Accept-Encoding"}
    if is_unchanged(request, headers["etag"]):
        return Response(status_code=304, headers=headers)
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(pages.body(number), media_type="application/json", headers=headers)
    headers["content-encoding"] = "gzip"
    return Response(pages.member(number), media_type="application/json", headers=headers)
