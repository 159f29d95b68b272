"""The route of search: what a store finds, and what people said."""

from __future__ import annotations

from typing import Annotated, Literal

import anyio.to_thread
import numpy as np
from fastapi import Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feature_store.lookup.bodies import row_body
from feature_store.lookup.contrast import contrast
from feature_store.lookup.decoder import nearest_rows
from feature_store.lookup.hits import Found, Hit
from feature_store.lookup.meaning import Meaning
from feature_store.lookup.search import SearchKind, search
from feature_store.people.database import People
from feature_store.people.entry import Record
from feature_store.store import Store
from server import responses
from server.edition import Edition
from server.errors import ApiError
from server.people.access import people_if_on
from server.people.finding import said_with
from server.routes.bodies import json_body
from server.routes.common import (
    DictionaryId,
    ReadRouter,
    edition_of,
    entry_of,
    json_response,
    known_parameters,
    never_kept,
)
from server.routes.features import Limit

router = ReadRouter(prefix="/api/v1/dictionaries/{dictionary}", tags=["features"], dependencies=[known_parameters])
Kind = SearchKind | Literal["meaning", "people"]
VERBS = {"label": "labelled it", "note": "noted", "tag": "tagged it"}
MOST_VECTOR = 1 << 17  # numbers
MOST_BODY_BYTES = 4 << 20


class Search(BaseModel):
    """What is searched, and how."""

    model_config = ConfigDict(extra="forbid")

    q: str = Field(
        min_length=1, max_length=200_000, description="Words, a token, a number, a sentence; or texts, one a line."
    )
    kind: Kind = Field(
        default="all",
        description="label, explanation: all words in it; current, next, previous: fires on, before, after the token; "
        "promoted: raises the token's logit; sentence: fires on its tokens; like: near the feature of that number; "
        "meaning: its words mean the same; people: somebody said the words of it; all: the best of each.",
    )
    against: str | None = Field(
        default=None,
        max_length=200_000,
        description="Of a sentence: features that fire less on this. Every line is a text.",
    )
    limit: int = Field(default=50, ge=1, le=200, description="Features.")


BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": Search.model_json_schema()}}}}
VECTOR = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["vector"],
                    "properties": {
                        "vector": {"type": "array", "items": {"type": "number"}, "description": "As wide as the site."},
                        "limit": {"type": "integer", "minimum": 1, "maximum": 200, "default": 50},
                    },
                }
            }
        },
    }
}


@router.get("/search", response_model=responses.SearchResult)
def search_features(
    request: Request,
    dictionary: DictionaryId,
    q: Annotated[str, Query(min_length=1, max_length=1000, description="Words, a token, a number, or a sentence.")],
    kind: Annotated[Kind, Query(description=Search.model_fields["kind"].description)] = "all",
    *,
    against: Annotated[
        str | None, Query(max_length=1000, description="Of a sentence: features that fire less on this.")
    ] = None,
    limit: Limit = 50,
) -> Response:
    """Features that a text finds, each with the reason."""
    return _answer(request, dictionary, Search(q=q, kind=kind, against=against, limit=limit))


@router.post(
    "/search", response_model=responses.SearchResult, openapi_extra=BODY, name="search_features_for_long_texts"
)
async def search_long(request: Request, dictionary: DictionaryId) -> Response:
    """The same for texts that are too long for an address, such as many of each kind to be held against each other."""
    body = await json_body(request, MOST_BODY_BYTES)
    try:
        wanted = Search.model_validate(body)
    except ValidationError as error:
        raise ApiError(
            422, "; ".join(f"{p['loc'][-1] if p['loc'] else 'body'}: {p['msg']}" for p in error.errors())
        ) from None
    return await anyio.to_thread.run_sync(_answer, request, dictionary, wanted)


@router.post("/search/vector", response_model=responses.SearchResult, openapi_extra=VECTOR)
async def search_vector(request: Request, dictionary: DictionaryId) -> Response:
    """Features whose decoder rows point the way of a vector, such as a probe's or a difference of means."""
    body = await json_body(request, MOST_BODY_BYTES)
    vector, limit = (body.get("vector"), body.get("limit", 50)) if isinstance(body, dict) else (None, None)
    is_vector = (
        isinstance(vector, list) and 0 < len(vector) <= MOST_VECTOR and all(type(v) in (int, float) for v in vector)
    )
    if not is_vector or type(limit) is not int or not 0 < limit <= 200:
        raise ApiError(422, "an object is wanted: vector, a list of numbers; limit, 1 to 200")

    def answer() -> Response:
        entry = entry_of(request, dictionary)
        edition = entry.edition()
        try:
            near = nearest_rows(entry.folder, edition.card, np.array(vector, np.float64), limit)
        except ValueError as error:
            raise ApiError(422, str(error)) from None
        hits = [Hit(row.feature, "vector", f"cosine {row.cosine:.2f} with its decoder row") for row in near]
        return _respond(request, edition, Search(q="vector", limit=limit), Found(hits, len(hits), []))

    return await anyio.to_thread.run_sync(answer)


def _answer(request: Request, dictionary: str, wanted: Search) -> Response:
    edition, people = edition_of(request, dictionary), people_if_on(request)
    if wanted.against is not None and wanted.kind != "sentence":
        raise ApiError(422, "against: only a sentence can be held against another; give kind=sentence")

    if wanted.kind == "meaning":
        return _respond(request, edition, wanted, _of_meaning(request, edition.store, wanted))
    result = _of_store(edition.store, wanted)
    if wanted.kind in ("all", "people"):
        result = _with_people(_of_people(people, edition, wanted.q), result, wanted.limit)
    return _respond(request, edition, wanted, result)


def _respond(request: Request, edition: Edition, wanted: Search, result: Found) -> Response:
    store = edition.store
    items = [
        row_body(store.columns.row(hit.feature)) | {"kind": hit.kind, "why": hit.why, "times": hit.times}
        for hit in result.hits
    ]
    body = {
        "query": wanted.q,
        "kind": wanted.kind,
        "items": items,
        "total": result.total,
        "notes": result.notes,
        "floor": store.floor,
    }
    is_kept = request.method != "POST" and people_if_on(request) is None
    return json_response(body, edition, request) if is_kept else never_kept(body)


def _of_meaning(request: Request, store: Store, wanted: Search) -> Found:
    meaning: Meaning | None = request.app.state.meaning
    if meaning is None:
        raise ApiError(501, "search by meaning is off here; start the server with --meaning")
    near = meaning.nearest(store, wanted.q, wanted.limit)
    note = "by a small sentence encoder on the words that explanations name; it knows no contexts"
    return Found([Hit(n.feature, "meaning", f"cosine of meaning {n.cosine:.2f}") for n in near], len(near), [note])


def _of_store(store: Store, wanted: Search) -> Found:
    if wanted.kind in ("people", "meaning"):
        return Found([], 0, [])
    if wanted.against is not None:
        return contrast(store, wanted.q, wanted.against, wanted.limit)
    return search(store, wanted.q, wanted.kind, wanted.limit)


def _of_people(people: People | None, edition: Edition, text: str) -> list[Hit]:
    """The features of which somebody said the words."""
    said = said_with(people, edition.card.weights_sha256, text.split())
    return [Hit(record.place.feature, "people", _why(record)) for record in said]


def _why(record: Record) -> str:
    entry = record.entry
    return f"{record.person} {VERBS[entry.kind]} “{entry.subject or entry.value}”"


def _with_people(said: list[Hit], result: Found, limit: int) -> Found:
    """What people said first, each feature once."""
    once = {hit.feature: hit for hit in reversed((*said, *result.hits))}
    hits = sorted(once.values(), key=(*said, *result.hits).index)
    n_new = len({hit.feature for hit in said} - {hit.feature for hit in result.hits})
    notes = result.notes if result.hits or not said else []
    return Found(hits[:limit], result.total + n_new, notes)
