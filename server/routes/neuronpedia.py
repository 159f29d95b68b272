"""Neuronpedia's door: its routes that read what a store holds, in its own shapes, so that its clients work here.

A source is the id of a dictionary, or its name where no other has that. Routes that need the running model, or that write,
answer 501. Keys are spelled as Neuronpedia spells them.
"""

from __future__ import annotations

from typing import Any, Literal

import anyio.to_thread
import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from feature_store.lookup import neuronpedia
from feature_store.lookup.search import search
from feature_store.people.entry import NOWHERE
from feature_store.store import Store
from server.catalogue import Catalogue, Entry
from server.edition import Edition
from server.errors import ApiError
from server.people.access import people_if_on
from server.people.vectors import neuron_of_vector, vector_record
from server.routes.bodies import json_body
from server.routes.common import json_response, never_kept
from server.routes.features import contexts_of, feature_of

router = APIRouter(prefix="/api", include_in_schema=False)
MOST_FEATURES = 50
PER_PAGE, PER_SEARCH = 25, 20
NOT_HERE = (
    "activation/new", "activation/source", "feature/upload-batch", "search-all", "search-topk-by-token",
    "steer", "steer-chat", "steer-logits", "cossim", "tokenize",
    "bookmark/new", "comment/new", "graph/generate", "graph/delete",
    "graph/list-owned", "graph/signed-put", "graph/save-to-db", "source-set/new", "source-set/get", "model/new",
    "explanation/new", "explanation/generate", "explanation/score",
)  # fmt: skip


async def refuse(request: Request) -> Response:
    """What this server has not, said plainly."""
    path = request.url.path.removeprefix("/api/").rstrip("/")
    raise ApiError(501, f"{path} is not answered here: it needs the running model, or writes")


for _path in NOT_HERE:
    for _ending in ("", "/"):
        router.add_api_route(f"/{_path}{_ending}", refuse, methods=["POST"])


def entry_of_source(request: Request, model: Any, source: Any) -> Entry:
    """The dictionary of a model and a source; 404 with those that there are."""
    catalogue: Catalogue = request.app.state.catalogue
    matching = [entry for entry in catalogue.entries() if source in _names_of(entry)]
    if len(matching) == 1 and model in (matching[0].edition().card.model.name, matching[0].id):
        return matching[0]
    known = ", ".join(f"{entry.edition().card.model.name}/{entry.id}" for entry in catalogue.entries()[:5])
    raise ApiError(404, f"no such model and source; there are {known or 'none'}")


def _names_of(entry: Entry) -> set[str]:
    """What a source may be called: its id or name, also with the number of its layer in front, as SAELens says it."""
    card = entry.edition().card
    layer = card.sae["hook"].rpartition(".")[2]
    return {entry.id, card.name, f"{layer}-{entry.id}", f"{layer}-{card.name}"}


def index_of(store: Store, value: Any) -> int:
    """The number of a feature that a body names; 404 if there is none."""
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < store.n_features):
        raise ApiError(404, f"no such feature; this source has features 0..{store.n_features - 1}")
    return int(text)


def _neuron(source: str, edition: Edition, feature: int, most: int | None) -> dict[str, Any]:
    """A feature as Neuronpedia tells it; `most` activations at most."""
    detail, contexts = feature_of(edition.store, feature), contexts_of(edition.store, feature)
    place = neuronpedia.Place(edition.card.model.name, source, edition.card.sae["hook"])
    explanations = zip(neuronpedia.explanation_rows(place, detail), detail["explanations"], strict=True)
    return {
        **neuronpedia.feature_row(place, detail),
        "source": source,
        "sourceSetName": source,
        "explanations": [row | {"source": source, "scores": _scores(explanation)} for row, explanation in explanations],
        "activations": [
            row | {"source": source} for row in neuronpedia.activation_rows(place, detail, contexts)[:most]
        ],
        "lists": [],
        "comments": [],
        "creator": {"name": "saedex"},
    }


def _scores(explanation: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"value": score["value"], "explanationScoreTypeName": f"{score['scorer']} {score['metric']}"}
        for score in explanation["scores"]
    ]


@router.get("/feature/{model}/{source}/{index}")
def get_neuron(request: Request, model: str, source: str, index: str) -> Response:
    """One feature, or one of the vectors that people keep."""
    people = people_if_on(request)
    if people and people.said(NOWHERE.weights, kind="vector", person=source):
        return never_kept(neuron_of_vector(people, vector_record(people, source, index)))
    entry = entry_of_source(request, model, source)
    edition = entry.edition()
    return json_response(_neuron(entry.id, edition, index_of(edition.store, index), None), edition, request)


def mapping(value: Any) -> dict[str, Any]:
    """A body that is an object; 422 otherwise."""
    if not isinstance(value, dict):
        raise ApiError(422, "an object with modelId and layer is wanted")
    return value


@router.post("/features")
async def get_neurons(request: Request) -> Response:
    """Several features, in the order in which they are asked for."""
    wanted = await json_body(request)
    if not isinstance(wanted, list) or not 0 < len(wanted) <= MOST_FEATURES:
        raise ApiError(422, f"a list of 1 to {MOST_FEATURES} objects with modelId, layer and index is wanted")

    def answer() -> list[dict[str, Any]]:
        neurons = []
        for item in map(mapping, wanted):
            entry = entry_of_source(request, item.get("modelId"), item.get("layer", item.get("source")))
            edition, most = entry.edition(), item.get("maxActsToReturn")
            number = index_of(edition.store, item.get("index"))
            neurons.append(_neuron(entry.id, edition, number, most if isinstance(most, int) else None))
        return neurons

    return json_response(await anyio.to_thread.run_sync(answer))


@router.post("/features-offset")
async def get_neurons_from(request: Request) -> Response:
    """The next 25 features that fire."""
    wanted = mapping(await json_body(request))

    def answer() -> list[dict[str, Any]]:
        entry = entry_of_source(request, wanted.get("modelId"), wanted.get("layer"))
        edition = entry.edition()
        store = edition.store
        firing = np.flatnonzero(store.columns.numbers["n_fired"] > 0)
        start = index_of(store, wanted.get("offset", 0))
        return [_neuron(entry.id, edition, f, None) for f in firing[firing >= start][:PER_PAGE].tolist()]

    return json_response(await anyio.to_thread.run_sync(answer))


@router.post("/explanation/{scope}")
async def search_explanations(request: Request, scope: Literal["search", "search-model", "search-all"]) -> Response:
    """Features that words find; they are compared as words, not by meaning, so there is no cosine."""
    wanted = mapping(await json_body(request))
    query, offset = wanted.get("query"), wanted.get("offset", 0)
    if not isinstance(query, str) or not 0 < len(query) <= 1000 or not isinstance(offset, int) or offset < 0:
        raise ApiError(422, "query: 1 to 1000 letters are wanted; offset: a number")

    def answer() -> dict[str, Any]:
        editions = {entry.id: entry.edition() for entry in _scope(request, scope, wanted)}
        hits = [(source, hit) for source, edition in editions.items() for hit in _hits(edition.store, query)]
        page = hits[offset : offset + PER_SEARCH]
        has_more = offset + PER_SEARCH < len(hits)
        results = [
            {"modelId": editions[source].card.model.name, "layer": source, "index": str(feature), "description": label,
             "cosine_similarity": None, "neuron": _neuron(source, editions[source], feature, 3)}
            for source, (feature, label) in page
        ]  # fmt: skip
        return {
            "request": wanted,
            "results": results,
            "resultsCount": len(results),
            "hasMore": has_more,
            "nextOffset": offset + PER_SEARCH if has_more else None,
        }

    return json_response(await anyio.to_thread.run_sync(answer))


def _scope(request: Request, scope: str, wanted: dict[str, Any]) -> list[Entry]:
    catalogue: Catalogue = request.app.state.catalogue
    layers = wanted.get("layers")
    if scope == "search" and isinstance(layers, list):
        return [entry_of_source(request, wanted.get("modelId"), layer) for layer in layers]
    every = catalogue.entries()
    return [e for e in every if scope == "search-all" or e.edition().card.model.name == wanted.get("modelId")]


def _hits(store: Store, query: str) -> list[tuple[int, str | None]]:
    return [(hit.feature, store.columns.label(hit.feature)) for hit in search(store, query, "all", 200).hits]
