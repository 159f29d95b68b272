"""Routes of dictionaries: the list, one in detail, its documents and its downloads."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response

from feature_store import queries
from server import responses
from server.catalogue import Entry
from server.errors import ApiError
from server.routes.common import entry_of, json_response, known_parameters

router = APIRouter(prefix="/api/v1", tags=["dictionaries"], dependencies=[known_parameters])
DENSITY_EDGES = np.arange(-7, 0.25, 0.25)


def _summary(entry: Entry) -> dict[str, Any]:
    card, metrics = entry.card, entry.metrics
    store = entry.store
    return {
        "id": entry.id,
        "name": card.name,
        "run": card.run,
        "model": card.model.name,
        "hook": card.sae["hook"],
        "architecture": card.sae["architecture"],
        "d_sae": card.sae["d_sae"],
        "k": card.sae.get("k"),
        "generation": store.generation,
        "fvu": metrics.fvu,
        "l0": metrics.l0,
        "loss_recovered": metrics.loss_recovered.mean if metrics.loss_recovered else None,
        **queries.counts(store),
    }


@router.get("/dictionaries", response_model=list[responses.DictionarySummary])
def list_dictionaries(request: Request) -> Response:
    """Every dictionary of this server."""
    entries: dict[str, Entry] = request.app.state.catalogue
    return json_response([_summary(entry) for entry in entries.values()])


@router.get("/dictionaries/{dictionary}", response_model=responses.DictionaryDetail)
def get_dictionary(request: Request, dictionary: str) -> Response:
    """Card, metrics, density histogram and training curves of one dictionary."""
    entry = entry_of(request, dictionary)
    values = queries.densities(entry.store)
    logs = np.log10(values[values > 0])
    body = _summary(entry) | {
        "card": entry.card.as_json(),
        "metrics": entry.metrics.as_json(),
        "labels": entry.labels.as_json() if entry.labels else {},
        "densities_log10_edges": DENSITY_EDGES.tolist(),
        "densities_features": np.histogram(logs, DENSITY_EDGES)[0].tolist(),
        "training": entry.training_curve(),
    }
    return json_response(body, entry.store.generation, request)


@router.get("/dictionaries/{dictionary}/concepts", response_model=responses.ConceptList)
def list_concepts(request: Request, dictionary: str) -> Response:
    """The dictionary's concepts: groups of features with a name, the largest first, each followed by its parts."""
    store = entry_of(request, dictionary).store
    concepts = queries.concepts(store)
    whole = {f for c in concepts if c.parent is None for f in c.features}
    labels = queries.labels(store, sorted(whole))
    body = {"features_grouped": len(whole), "items": [responses.concept(c, labels) for c in concepts]}
    return json_response(body, store.generation, request)


@router.get("/dictionaries/{dictionary}/documents/{document}", response_model=responses.DocumentDetail)
def get_document(request: Request, dictionary: str, document: int) -> Response:
    """The strongest features of one document of the index corpus, by mean activation times length."""
    entry = entry_of(request, dictionary)
    record = queries.document(entry.store, document) if document >= 0 else None
    if record is None:
        raise ApiError(404, f"no document {document} in this dictionary's corpus")
    return json_response({"document": document, **asdict(record)})


@router.get("/dictionaries/{dictionary}/download", response_model=list[responses.DownloadItem])
def list_downloads(request: Request, dictionary: str) -> Response:
    """Files on offer with size and SHA-256; dictionary.zip holds all of them."""
    entry = entry_of(request, dictionary)
    base = f"api/v1/dictionaries/{entry.id}/download"
    return json_response(
        [
            {"name": d.name, "size_bytes": d.size_bytes, "sha256": d.sha256, "url": f"{base}/{d.name}"}
            for d in entry.downloads()
        ]
    )


@router.get("/dictionaries/{dictionary}/download/{file}", response_class=FileResponse)
def download(request: Request, dictionary: str, file: str) -> FileResponse:
    """One file, by a name from the list; the header x-sha256 carries its hash."""
    offered = entry_of(request, dictionary).download(file)
    if offered is None:
        raise ApiError(404, "no such file on offer; see the list one level up")
    return FileResponse(
        offered.path, media_type=offered.media_type, filename=offered.name, headers={"x-sha256": offered.sha256}
    )
