"""Neuronpedia's door for what people keep: lists of features, vectors, and texts for them. They are entries of the file of people.

A list is called PERSON/NAME. A vector has its owner as its source, and a number. Keys are spelled as Neuronpedia spells
them; writing needs a key, which its client sends as X-Api-Key.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import Response

from feature_store.people.database import People, Person
from feature_store.people.entry import NOWHERE, YES, Entry, EntryError, Kind, Place, Record, checked
from server.catalogue import Catalogue
from server.errors import ApiError
from server.people.access import known_person, people_of
from server.people.vectors import (
    MOST_ACTIVATIONS,
    activations_of,
    checked_activations,
    vector_body,
    vector_record,
)
from server.routes.bodies import json_body
from server.routes.common import never_kept
from server.routes.neuronpedia import entry_of_source, index_of, mapping

router = APIRouter(prefix="/api", include_in_schema=False)
MOST_BODY_BYTES = 4 << 20
MOST_ITEMS = 500
Work = Callable[[Request, People, dict[str, Any]], Any]


def _route(path: str, work: Work) -> None:
    """Adds a POST route that does some work with the file of people in a thread."""

    async def answer(request: Request) -> Response:
        people, data = people_of(request), await json_body(request, MOST_BODY_BYTES, parse=_json)
        return never_kept(await anyio.to_thread.run_sync(work, request, people, mapping(data)))

    for ending in ("", "/"):
        router.add_api_route(f"/{path}{ending}", answer, methods=["POST"], name=path)


def _json(data: bytes) -> Any:
    return json.loads(data) if data else {}


def _said(people: People, person: Person, kind: Kind, place: Place, *, subject: Any, value: Any) -> Record:
    if not person.may(kind):
        raise ApiError(403, f"this key allows {', '.join(person.scopes)}; a {kind} needs write")
    try:
        return people.write(person.name, place, checked(kind, subject, value))
    except EntryError as error:
        raise ApiError(422, str(error)) from None


def new_list(request: Request, people: People, body: dict[str, Any]) -> dict[str, Any]:
    """An empty list."""
    person, name, told = known_person(request), body.get("name"), body.get("description") or ""
    _said(people, person, "description", NOWHERE, subject=name, value=told or YES)
    return {"id": f"{person.name}/{name}", "name": name, "description": told}


def owned_lists(request: Request, people: People, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The lists of the person who asks."""
    person = known_person(request)
    told = {
        r.entry.subject: r.entry.value for r in people.said(NOWHERE.weights, kind="description", person=person.name)
    }
    return [
        {"id": f"{person.name}/{name}", "name": name, "description": "" if text == YES else text}
        for name, text in sorted(told.items())
    ]


def add_features(request: Request, people: People, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Puts features into one of one's own lists."""
    person, items = known_person(request), body.get("featuresToAdd")
    owner, _, name = str(body.get("listId")).partition("/")
    if owner != person.name:
        raise ApiError(403, f"this list is not {person.name}'s")
    if not isinstance(items, list) or not 0 < len(items) <= MOST_ITEMS:
        raise ApiError(422, f"featuresToAdd: 1 to {MOST_ITEMS} objects with modelId, layer and index are wanted")
    places = []
    for item in map(mapping, items):
        entry = entry_of_source(request, item.get("modelId"), item.get("layer"))
        edition = entry.edition()
        places.append(Place(entry.id, edition.card.weights_sha256, index_of(edition.store, item.get("index"))))
    for place in places:
        _said(people, person, "list", place, subject=name, value=YES)
    return [_item(request, place) for place in places]


def get_list(request: Request, people: People, body: dict[str, Any]) -> dict[str, Any]:
    """A list with its features."""
    list_id = str(body.get("listId"))
    owner, _, name = list_id.partition("/")
    told = [r for r in people.said(NOWHERE.weights, kind="description", person=owner) if r.entry.subject == name]
    members = people.members(owner, name)
    if not told and not members:
        raise ApiError(404, "no such list; its id is PERSON/NAME")
    text = told[0].entry.value if told else YES
    description = "" if text == YES else text
    items = [_item(request, record.place) for record in members]
    return {"id": list_id, "name": name, "description": description, "neurons": items}


def _item(request: Request, place: Place) -> dict[str, Any]:
    catalogue: Catalogue = request.app.state.catalogue
    entry = catalogue.get(place.dictionary)
    model = entry.edition().card.model.name if entry else "unknown"
    return {"modelId": model, "layer": place.dictionary, "index": str(place.feature)}


def new_vector(request: Request, people: People, body: dict[str, Any]) -> dict[str, Any]:
    """Keeps a vector."""
    person, values, label = known_person(request), body.get("vector"), body.get("vectorLabel")
    is_vector = isinstance(values, list) and values and all(type(value) in (int, float) for value in values)
    if not is_vector or not isinstance(label, str) or not isinstance(body.get("modelId"), str):
        raise ApiError(422, "modelId, vectorLabel and vector, a list of numbers, are wanted")
    stored = {
        "modelId": body["modelId"],
        "hookName": f"blocks.{body.get('layerNumber')}.{body.get('hookType')}",
        "vectorLabel": label,
        "vector": values,
        "vectorDefaultSteerStrength": body.get("vectorDefaultSteerStrength"),
    }
    number = str(people.n_written(person.name, "vector") + 1)
    _said(people, person, "vector", NOWHERE, subject=number, value=json.dumps(stored))
    vector = {
        "modelId": stored["modelId"], "source": person.name, "index": number, "label": label, "hookName": stored["hookName"],
        "values": values, "defaultSteerStrength": stored["vectorDefaultSteerStrength"],
    }  # fmt: skip
    return {"vector": vector, "url": str(request.base_url)}


def get_vector(request: Request, people: People, body: dict[str, Any]) -> dict[str, Any]:
    """One vector."""
    return {"vector": vector_body(vector_record(people, body.get("source"), body.get("index")))}


def owned_vectors(request: Request, people: People, body: dict[str, Any]) -> dict[str, Any]:
    """The vectors of the person who asks."""
    person = known_person(request)
    return {"vectors": [vector_body(r) for r in people.said(NOWHERE.weights, kind="vector", person=person.name)]}


def delete_vector(request: Request, people: People, body: dict[str, Any]) -> dict[str, Any]:
    """Takes one of one's own vectors back."""
    person, record = _own_vector(request, people, body)
    people.write(person.name, NOWHERE, Entry("vector", record.entry.subject, None))
    return {"message": "deleted"}


def upload_activations(request: Request, people: People, body: dict[str, Any]) -> dict[str, Any]:
    """Keeps texts on which one of one's own vectors was evaluated, beside those that are there already."""
    person, record = _own_vector(request, people, body)
    uploaded = checked_activations(body.get("activations"))
    earlier = activations_of(people, record)
    texts = earlier + [text for text in uploaded if text not in earlier]
    if len(texts) > MOST_ACTIVATIONS:
        raise ApiError(422, f"a vector has up to {MOST_ACTIVATIONS} texts, this one would have {len(texts)}")
    _said(people, person, "activations", NOWHERE, subject=record.entry.subject, value=json.dumps(texts))
    return {"message": f"{len(texts)} activations", "activationsCount": len(texts)}


def _own_vector(request: Request, people: People, body: dict[str, Any]) -> tuple[Person, Record]:
    person, record = known_person(request), vector_record(people, body.get("source"), body.get("index"))
    if record.person != person.name:
        raise ApiError(403, f"this vector is not {person.name}'s")
    return person, record


for _path, _work in {
    "list/new": new_list,
    "list/list": owned_lists,
    "list/add-features": add_features,
    "list/get": get_list,
    "vector/new": new_vector,
    "vector/get": get_vector,
    "vector/list-owned": owned_vectors,
    "vector/delete": delete_vector,
    "activation/upload-batch": upload_activations,
}.items():
    _route(_path, _work)
