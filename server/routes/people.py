"""Routes of what people say of features: labels, votes, tags, notes, lists, blind ratings. Writing needs a key.

A key comes in the header `authorization: Bearer KEY` or `x-api-key`; nobody's browser sends it by itself, so that no other
page can write in a reader's name. Without `sae serve --people FILE` nothing is written or shown.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

import anyio.to_thread
import numpy as np
import orjson
from fastapi import Depends, Query, Request
from fastapi.responses import Response, StreamingResponse

from feature_store.people.agreement import Said, Scale, agreement
from feature_store.people.database import People, PeopleError, Person
from feature_store.people.entry import ABOUT_NO_FEATURE, RATINGS, EntryError, Kind, Place, Record, checked
from server import responses
from server.edition import Edition
from server.errors import ApiError
from server.people.access import known_person, people_if_on, people_of, person_of
from server.routes.bodies import json_body
from server.routes.common import DictionaryId, ReadRouter, entry_of, known_parameters, never_kept
from server.routes.features import FeatureId, refused

router = ReadRouter(prefix="/api/v1", tags=["people"], dependencies=[known_parameters])
MOST_IMPORTED_BYTES = 16 << 20
LINES = "application/x-ndjson"
VALUES = {rating: int(rating) for rating in RATINGS} | {"down": 0, "up": 1}
BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": responses.EntryBody.model_json_schema()}},
    }
}
IMPORTED = {"requestBody": {"required": True, "content": {LINES: {"schema": {"type": "string"}}}}}


PeopleFile = Annotated[People, Depends(people_of)]
Asking = Annotated[Person | None, Depends(person_of)]
Known = Annotated[Person, Depends(known_person)]


@router.get("/people", response_model=responses.Self)
def get_self(request: Request, asking: Asking) -> Response:
    """Whether people may say something here, and who asks."""
    is_on = people_if_on(request) is not None
    name, scopes = (asking.name, list(asking.scopes)) if asking else (None, [])
    return never_kept({"on": is_on, "person": name, "scopes": scopes})


@router.get("/dictionaries/{dictionary}/features/{feature}/people", response_model=responses.EntryList)
def list_said(
    request: Request, dictionary: DictionaryId, feature: FeatureId, people: PeopleFile, *, asking: Asking
) -> Response:
    """What people said of a feature. Ratings are blind: one sees one's own alone."""
    edition = entry_of(request, dictionary).edition()
    records = people.said(_place(edition, dictionary, feature).weights, feature)
    name = asking.name if asking else None
    return never_kept({"items": [r.as_json() for r in records if r.entry.kind != "rating" or r.person == name]})


@router.post(
    "/dictionaries/{dictionary}/features/{feature}/people",
    response_model=responses.EntryItem,
    openapi_extra=BODY,
)
async def say(request: Request, dictionary: DictionaryId, feature: FeatureId, people: PeopleFile) -> Response:
    """Says something of a feature, or takes it back (`value` null)."""
    body = await json_body(request)
    if not isinstance(body, dict) or not set(body) <= {"kind", "subject", "value"}:
        raise ApiError(422, "an object with kind, subject and value is wanted")

    def write() -> Record:
        person = known_person(request)
        try:
            entry = checked(body.get("kind"), body.get("subject", ""), body.get("value"))
        except EntryError as error:
            raise ApiError(422, str(error)) from None
        if entry.kind in ABOUT_NO_FEATURE:
            raise ApiError(422, f"a {entry.kind} is not about a feature")
        if not person.may(entry.kind):
            raise ApiError(403, f"this key allows {', '.join(person.scopes)}; a {entry.kind} needs another")
        return people.write(person.name, _place(entry_of(request, dictionary).edition(), dictionary, feature), entry)

    return never_kept((await anyio.to_thread.run_sync(write)).as_json())


@router.post("/people/undo", response_model=responses.EntryItem)
def undo(
    people: PeopleFile,
    known: Known,
    entry: Annotated[int | None, Query(ge=1, description="Number of an entry; without it one's own last one.")] = None,
) -> Response:
    """Undoes an entry, so that the one before it counts again."""
    try:
        return never_kept(people.undo(known, entry).as_json())
    except PeopleError as error:
        raise ApiError(409, str(error)) from None


@router.get("/people/entries", response_class=StreamingResponse)
def export_entries(
    people: PeopleFile,
    known: Known,
    *,
    everything: Annotated[bool, Query(alias="all", description="Also what was replaced or undone: the audit.")] = False,
    after: Annotated[int, Query(ge=0, le=1 << 62, description="Only entries with a larger number.")] = 0,
) -> Response:
    """Entries as JSON lines: one's own, or everybody's for a key with admin."""
    person = None if "admin" in known.scopes else known.name

    def lines() -> Iterator[bytes]:
        for record in people.records(everything=everything, person=person, after=after):
            yield orjson.dumps(record.as_json()) + b"\n"

    headers = {"content-disposition": 'attachment; filename="people.ndjson"', "cache-control": "no-store"}
    return StreamingResponse(lines(), media_type=LINES, headers=headers)


@router.post("/people/entries", response_model=responses.Imported, openapi_extra=IMPORTED)
async def import_entries(request: Request, people: PeopleFile) -> Response:
    """Adds exported entries; those that are here already are passed over. Needs a key with admin."""
    person = await anyio.to_thread.run_sync(known_person, request)
    if "admin" not in person.scopes:
        raise ApiError(403, "to import, a key with admin is needed")
    data = await json_body(request, MOST_IMPORTED_BYTES, parse=_lines)

    def add() -> int:
        try:
            return people.import_records(person.name, data)
        except EntryError as error:
            raise ApiError(422, str(error)) from None

    return never_kept({"imported": await anyio.to_thread.run_sync(add)})


def _lines(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.splitlines() if line.strip()]


@router.get("/dictionaries/{dictionary}/people", response_model=responses.PeopleSummary)
def summarize_people(request: Request, dictionary: DictionaryId, people: PeopleFile) -> Response:
    """Tags and lists of a dictionary, how many features people labelled and rated, and how far they agree."""
    edition = entry_of(request, dictionary).edition()
    records = people.said(edition.card.weights_sha256)
    tags = Counter(r.entry.subject for r in records if r.entry.kind == "tag")
    lists: dict[tuple[str, str], list[int]] = {}
    for record in records:
        if record.entry.kind == "list":
            lists.setdefault((record.person, record.entry.subject), []).append(record.place.feature)
    of_kind = lambda kind: len({r.place.feature for r in records if r.entry.kind == kind})  # noqa: E731
    body = {
        "tags": [{"name": name, "features": n} for name, n in sorted(tags.items())],
        "lists": [{"person": p, "name": name, "features": f} for (p, name), f in sorted(lists.items())],
        "labelled": of_kind("label"),
        "rated": of_kind("rating"),
        "agreement_of_ratings": _agreement(records, "rating", "ordinal"),
        "agreement_of_votes": _agreement(records, "vote", "nominal"),
    }
    return never_kept(body)


def _agreement(records: list[Record], kind: Kind, scale: Scale) -> dict[str, Any]:
    said = (
        Said((r.place.feature, r.entry.subject), r.person, VALUES[r.entry.value or ""])
        for r in records
        if r.entry.kind == kind
    )
    return agreement(said, scale)._asdict()


@router.get("/dictionaries/{dictionary}/triage", response_model=responses.Triage)
def get_triage(
    request: Request,
    dictionary: DictionaryId,
    people: PeopleFile,
    known: Known,
    *,
    limit: Annotated[int, Query(ge=1, le=200, description="Features.")] = 20,
) -> Response:
    """The next features to rate blind: firing ones in an order that is drawn once for everybody, without those rated.

    Everybody goes through the same order, so that people rate the same features and their agreement can be told.
    """
    edition = entry_of(request, dictionary).edition()
    weights = edition.card.weights_sha256
    firing = np.flatnonzero(edition.store.columns.numbers["n_fired"] > 0)
    order = firing[np.random.default_rng(int(weights[:8], 16)).permutation(len(firing))].tolist()
    rated = {record.place.feature for record in people.said(weights, kind="rating", person=known.name)}
    left = [feature for feature in order if feature not in rated]
    return never_kept({"features": left[:limit], "left": len(left), "rated": len(rated)})


def _place(edition: Edition, dictionary: str, feature: int) -> Place:
    if not 0 <= feature < edition.store.n_features:
        raise refused(edition.store)
    return Place(dictionary, edition.card.weights_sha256, feature)
