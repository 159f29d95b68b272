"""Routes of dictionaries: the list, one in detail, its documents and its downloads."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any, get_args
from urllib.parse import quote

from fastapi import Path, Query, Request
from fastapi.responses import Response, StreamingResponse

from feature_store import queries
from feature_store.lookup.bodies import Surroundings, concept_body
from feature_store.lookup.search import SearchKind
from server import responses
from server.catalogue import Catalogue, Entry
from server.edition import DENSITY_EDGES, Edition
from server.errors import ApiError
from server.parts import close, length_of, respond
from server.people.access import people_if_on
from server.routes.common import DictionaryId, ReadRouter, edition_of, entry_of, json_response, known_parameters
from server.tables import FORMATS

router = ReadRouter(prefix="/api/v1", tags=["dictionaries"], dependencies=[known_parameters])
DocumentNumber = Annotated[int, Path(description="Number of the document.")]
POSSIBLE_DOCUMENTS = range(1 << 32)  # the store keeps ids in 32 bits


def _summary(entry: Entry, edition: Edition) -> dict[str, Any]:
    card, metrics = edition.card, edition.metrics
    return {
        "id": entry.id,
        "name": card.name,
        "run": card.run,
        "model": card.model.name,
        "hook": card.sae["hook"],
        "architecture": card.sae["architecture"],
        "d_sae": card.sae["d_sae"],
        "k": card.sae.get("k"),
        "generation": edition.store.generation,
        "fvu": metrics.fvu,
        "l0": metrics.l0,
        "loss_recovered": metrics.loss_recovered.mean if metrics.loss_recovered else None,
        **edition.counts,
    }


@router.get("/dictionaries", response_model=list[responses.DictionarySummary])
def list_dictionaries(request: Request) -> Response:
    """Every sound dictionary of this server."""
    catalogue: Catalogue = request.app.state.catalogue
    return json_response([_summary(entry, entry.edition()) for entry in catalogue.entries()])


@router.get("/capabilities", response_model=responses.Capabilities)
def get_capabilities(request: Request) -> Response:
    """What this server can do, for programs that speak to several."""
    catalogue: Catalogue = request.app.state.catalogue
    return json_response({
        "version": version("saedex"),
        "dictionaries": len(catalogue),
        "search": [*get_args(SearchKind), *(["meaning"] if request.app.state.meaning else []), *(["people"] if people_if_on(request) else [])],
        "people": people_if_on(request) is not None,
        "formats": ["json", *FORMATS, "parquet"],
        "live": False,
    })  # fmt: skip


@router.get("/damage", response_model=list[responses.DamageItem])
def list_damage(request: Request) -> Response:
    """Dictionaries that are left out, because a file of theirs was damaged or missing when the server started."""
    catalogue: Catalogue = request.app.state.catalogue
    return json_response([{"id": damage.id, "problem": damage.problem} for damage in catalogue.damage])


@router.get("/dictionaries/{dictionary}", response_model=responses.DictionaryDetail)
def get_dictionary(request: Request, dictionary: DictionaryId) -> Response:
    """Card, metrics, density histogram and training curves of one dictionary."""
    entry = entry_of(request, dictionary)
    edition = entry.edition()
    body = _summary(entry, edition) | {
        "text": edition.store.meta.get("text"),
        "is_first_look": edition.store.meta.get("first_look", False),
        "other_texts": _other_texts(request, entry, edition),
        "card": edition.card.as_json(),
        "metrics": edition.metrics.as_json(),
        "labels": edition.labels.as_json() if edition.labels else {},
        "densities_log10_edges": DENSITY_EDGES.tolist(),
        "densities_features": edition.densities_features,
        "training": edition.training,
    }
    return json_response(body, edition, request)


def _other_texts(request: Request, entry: Entry, edition: Edition) -> list[dict[str, Any]]:
    """Dictionaries of the same weights that were indexed on other texts: a feature has the same number in all of them."""
    catalogue: Catalogue = request.app.state.catalogue
    others = [(other, other.edition()) for other in catalogue.entries() if other.id != entry.id]
    return [
        {"id": other.id, "text": their.store.meta.get("text")}
        for other, their in others
        if their.card.weights_sha256 == edition.card.weights_sha256
    ]


@router.get("/dictionaries/{dictionary}/concepts", response_model=responses.ConceptList)
def list_concepts(request: Request, dictionary: DictionaryId) -> Response:
    """The dictionary's concepts: groups of features with a name, the largest first, each followed by its parts."""
    edition = edition_of(request, dictionary)
    store = edition.store
    concepts, around = queries.concepts(store), Surroundings(store)
    whole = {f for c in concepts if c.parent is None for f in c.features}
    body = {"features_grouped": len(whole), "items": [concept_body(around, c) for c in concepts]}
    return json_response(body, edition, request)


@router.get("/dictionaries/{dictionary}/documents/{document}", response_model=responses.DocumentDetail)
def get_document(request: Request, dictionary: DictionaryId, document: DocumentNumber) -> Response:
    """The strongest features of one document of the index corpus, by mean activation times length."""
    edition = edition_of(request, dictionary)
    record = queries.document(edition.store, document) if document in POSSIBLE_DOCUMENTS else None
    if record is None:
        raise ApiError(404, "no document of that number in this dictionary's corpus")
    around = Surroundings(edition.store)
    features = [dict(vars(active)) | {"label": around.label(active.feature)} for active in record.features]
    return json_response({"document": document, "name": record.name, "features": features}, edition, request)


@router.get("/dictionaries/{dictionary}/documents/{document}/text", response_model=responses.DocumentText)
def get_document_text(
    request: Request,
    dictionary: DictionaryId,
    document: DocumentNumber,
    *,
    first: Annotated[int, Query(ge=0, le=1 << 40, description="Number of the first token.")] = 0,
    limit: Annotated[int, Query(ge=1, le=5000, description="Tokens.")] = 1000,
) -> Response:
    """A part of the text of one document, token by token."""
    edition = edition_of(request, dictionary)
    store = edition.store
    ids = queries.document_text(store, document) if document in POSSIBLE_DOCUMENTS else None
    if ids is None:
        raise ApiError(404, "no document of that number, or whole documents are not kept (index.keep_text)")
    body = {
        "document": document,
        "name": store.document_names[document],
        "n_tokens": len(ids),
        "first": first,
        "texts": store.vocabulary.texts(ids[first : first + limit].tolist()),
    }
    return json_response(body, edition, request)


@router.get("/dictionaries/{dictionary}/download", response_model=list[responses.DownloadItem])
def list_downloads(request: Request, dictionary: DictionaryId) -> Response:
    """Files on offer with size and SHA-256; dictionary.zip holds all of them."""
    entry = entry_of(request, dictionary)
    base = f"api/v1/dictionaries/{quote(entry.id, safe='')}/download"
    items = []
    for file in entry.list_downloads():
        size = length_of(file.parts)
        items.append({"name": file.name, "size_bytes": size, "sha256": file.sha256, "url": f"{base}/{file.name}"})
        close(file.parts)
    return json_response(items)


@router.get("/dictionaries/{dictionary}/download/{file}", response_class=StreamingResponse)
def download(
    request: Request, dictionary: DictionaryId, file: Annotated[str, Path(description="Name of the file.")]
) -> Response:
    """One file, or a range of it, by a name from the list; the header x-sha256 carries its hash."""
    offered = entry_of(request, dictionary).download(file)
    if offered is None:
        raise ApiError(404, "no such file on offer; see the list one level up")
    headers = {"content-type": offered.media_type, "content-disposition": f'attachment; filename="{offered.name}"'}
    if offered.sha256:
        headers["x-sha256"] = offered.sha256
    return respond(request, offered.parts, f'"{offered.etag}"', headers)
