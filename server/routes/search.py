"""The route of search: what a store finds, and what people said."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query, Request
from fastapi.responses import Response

from feature_store.lookup.bodies import row_body
from feature_store.lookup.search import Found, Hit, SearchKind, contrast, search
from feature_store.people.database import People
from feature_store.people.entry import Record
from feature_store.store import Store
from server import responses
from server.edition import Edition
from server.errors import ApiError
from server.people.access import people_if_on
from server.people.finding import said_with
from server.routes.common import DictionaryId, ReadRouter, edition_of, json_response, known_parameters, never_kept
from server.routes.features import Limit

router = ReadRouter(prefix="/api/v1/dictionaries/{dictionary}", tags=["features"], dependencies=[known_parameters])
Kind = SearchKind | Literal["people"]
VERBS = {"label": "labelled it", "note": "noted", "tag": "tagged it"}


@router.get("/search", response_model=responses.SearchResult)
def search_features(
    request: Request,
    dictionary: DictionaryId,
    q: Annotated[str, Query(min_length=1, max_length=1000, description="Words, a token, a number, or a sentence.")],
    kind: Annotated[
        Kind,
        Query(
            description="label, explanation: all words in it; current, next, previous: fires on, before, after the token; "
            "promoted: raises the token's logit; sentence: fires on its tokens; like: near the feature of that number; "
            "people: somebody said the words of it; all: the best of each."
        ),
    ] = "all",
    *,
    against: Annotated[
        str | None, Query(max_length=1000, description="Of a sentence: features that fire less on this.")
    ] = None,
    limit: Limit = 50,
) -> Response:
    """Features that a text finds, each with the reason."""
    edition, people = edition_of(request, dictionary), people_if_on(request)
    store = edition.store
    if against is not None and kind != "sentence":
        raise ApiError(422, "against: only a sentence can be held against another; give kind=sentence")

    result = _of_store(store, q, kind, against=against, limit=limit)
    if kind in ("all", "people"):
        result = _with_people(_of_people(people, edition, q), result, limit)
    items = [
        row_body(store.columns.row(hit.feature)) | {"kind": hit.kind, "why": hit.why, "times": hit.times}
        for hit in result.hits
    ]
    body = {
        "query": q,
        "kind": kind,
        "items": items,
        "total": result.total,
        "notes": result.notes,
        "floor": store.floor,
    }
    return never_kept(body) if people else json_response(body, edition, request)


def _of_store(store: Store, text: str, kind: Kind, *, against: str | None, limit: int) -> Found:
    if kind == "people":
        return Found([], 0, [])
    return contrast(store, text, against, limit) if against is not None else search(store, text, kind, limit)


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
