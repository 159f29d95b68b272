"""Routes of features: the table, one feature, its contexts, and search."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import anyio.to_thread
import numpy as np
import orjson
from fastapi import Depends, Query, Request
from fastapi.responses import Response, StreamingResponse

from feature_store import queries
from feature_store.lookup import filters
from feature_store.lookup.bodies import Surroundings, contexts_body, feature_body, judged_body, row_body
from feature_store.lookup.examples import examples
from feature_store.lookup.filters import Filter
from feature_store.lookup.parquet_table import parquet_table
from feature_store.queries import WindowGroup
from feature_store.store import Store
from server import responses
from server.conditions import is_unchanged
from server.errors import ApiError
from server.people.access import people_of
from server.people.finding import features_with
from server.preview.picture import picture
from server.routes.common import (
    DictionaryId,
    FeatureId,
    ReadRouter,
    edition_of,
    edition_soon,
    headers_of,
    json_response,
    known_parameters,
    never_kept,
    page_response,
)
from server.routes.table_filter import table_filter
from server.tables import FORMATS

router = ReadRouter(prefix="/api/v1/dictionaries/{dictionary}", tags=["features"], dependencies=[known_parameters])
Limit = Annotated[int, Query(ge=1, le=200, description="Rows per page.")]
MOST_POINTS, MOST_MAPPED = 20_000, 200_000
MAP_STEPS = 4095  # of each side
PARQUET = "application/vnd.apache.parquet"
SNIPPET = 60  # letters on each side
TABLE_BODIES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            PARQUET: {"schema": {"type": "string", "format": "binary"}},
            **{table.media_type: {"schema": {"type": "string"}} for table in FORMATS.values()},
        }
    }
}


@router.get("/features", response_model=responses.FeaturePage, responses=TABLE_BODIES)
def list_features(
    request: Request,
    dictionary: DictionaryId,
    wanted: Annotated[Filter, Depends(table_filter)],
    limit: Limit = 50,
    *,
    offset: Annotated[int, Query(ge=0, le=10**9, description="Rows to pass over.")] = 0,
    after: Annotated[
        int | None, Query(ge=0, le=10**9, description="Go on after this feature, instead of offset.")
    ] = None,
    snippets: Annotated[bool, Query(description="Also the strongest context of each feature of a page.")] = False,
    tag: Annotated[str | None, Query(max_length=64, description="Only those that somebody gave this tag.")] = None,
    in_list: Annotated[
        str | None, Query(alias="list", max_length=100, description="Only those in somebody's list: PERSON/NAME.")
    ] = None,
    fields: Annotated[str | None, Query(max_length=256, description="Only these, such as feature,label.")] = None,
    format: Annotated[
        Literal["json", "ndjson", "csv", "parquet"],
        Query(description="json: one page. Others: all features that pass, whatever limit and offset, as a file."),
    ] = "json",
) -> Response:
    """Features that pass all filters, sorted: one page of them, or all as a file."""
    edition = edition_of(request, dictionary)
    columns, names = edition.store.columns, _fields(fields)
    if any(name not in columns.explainers for name in wanted.explainers):
        known = ", ".join(columns.explainers) or "none"
        raise ApiError(422, f"explainer: no label comes from it; labels come from {known}")
    if tag or in_list:
        people = people_of(request)
        features = features_with(people, edition.card.weights_sha256, tag, in_list)
        wanted = replace(wanted, ids=[f for f in features if wanted.ids is None or f in wanted.ids])

    attached = {"content-disposition": f'attachment; filename="features.{format}"'}
    if format == "parquet":
        table = parquet_table(edition.store, wanted.found(columns).every())
        return Response(table, media_type=PARQUET, headers=attached)
    if format != "json":
        rows = ([_chosen(row_body(row), names) for row in part] for part in filters.every_row(columns, wanted))
        return StreamingResponse(
            FORMATS[format].write(rows),
            media_type=FORMATS[format].media_type,
            headers=attached,
        )

    page = filters.page(columns, wanted, limit=limit, offset=offset, after=after)
    items = [_chosen(row_body(row), names) for row in page.rows]
    if snippets or not fields:
        for item, row in zip(items, page.rows, strict=True):
            item["snippet"] = _snippet(edition.store, row.feature) if snippets else None
    body = {
        "items": items,
        "floor": edition.store.floor,
        "total": page.total,
        "limit": limit,
        "offset": page.offset,
        "next_after": page.rows[-1].feature if page.offset + limit < page.total else None,
    }
    return never_kept(body) if tag or in_list else json_response(body, edition, request)


def _fields(text: str | None) -> list[str]:
    """The names in a list such as `feature,label`; all if there is none."""
    known = list(responses.FeatureItem.model_fields)
    names = text.split(",") if text else known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ApiError(422, f"fields: {unknown[0]!r} is none of them; there are {', '.join(known)}")
    return names


def _chosen(values: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: values[name] for name in names}


def _snippet(store: Store, feature: int) -> dict[str, str] | None:
    """The strongest context of a feature as text before, on and after its peak."""
    contexts = contexts_of(store, feature)
    if not contexts["items"]:
        return None
    first = contexts["items"][0]
    texts, peak = first["texts"], first["peak"]
    return {
        "before": "".join(texts[:peak])[-SNIPPET:],
        "peak": texts[peak],
        "after": "".join(texts[peak + 1 :])[:SNIPPET],
    }


@router.get("/examples", response_model=responses.FeaturePage)
def list_examples(
    request: Request,
    dictionary: DictionaryId,
    limit: Annotated[int, Query(ge=1, le=24, description="Features.")] = 6,
) -> Response:
    """A few features that somebody who sees features for the first time can read, with their strongest context."""
    edition = edition_of(request, dictionary)
    store = edition.store
    numbers = examples(store, limit)
    items = [row_body(store.columns.row(f)) | {"snippet": _snippet(store, f)} for f in numbers]
    place = {"total": len(items), "limit": limit, "offset": 0, "next_after": None}
    return json_response({"items": items, "floor": store.floor, **place}, edition, request)


@router.get("/explainers", response_model=responses.ExplainerList)
def list_explainers(request: Request, dictionary: DictionaryId) -> Response:
    """The explainers that labels of this dictionary come from, the one with most labels first."""
    edition = edition_of(request, dictionary)
    items = [{"explainer": name, "features": n} for name, n in queries.explainers_of_labels(edition.store)]
    return json_response({"items": items}, edition, request)


@router.get("/scatter", response_model=responses.Scatter)
def get_scatter(request: Request, dictionary: DictionaryId) -> Response:
    """Density against score of the features that have both, in columns; every n-th of them where they are many."""
    edition = edition_of(request, dictionary)
    numbers = edition.store.columns.numbers
    features = np.flatnonzero(~np.isnan(numbers["low"]) & (numbers["density"] > 0))
    features = features[:: -(-len(features) // MOST_POINTS) or 1]
    body = {
        "features": features.tolist(),
        "log10_density": np.round(np.log10(numbers["density"][features]), 3).tolist(),
        "low": np.round(numbers["low"][features], 3).tolist(),
    }
    return json_response(body, edition, request)


@router.get("/map", response_model=responses.FeatureMap)
def get_map(request: Request, dictionary: DictionaryId) -> Response:
    """Where every feature is on the map, in columns; every n-th of them where they are many."""
    edition = edition_of(request, dictionary)
    columns, concepts = edition.store.columns, queries.concepts(edition.store)
    groups = [concept for concept in concepts if concept.parent is None]
    group = np.full(columns.n, -1)
    for number, concept in enumerate(groups):
        group[concept.features] = number
    features = np.flatnonzero(~np.isnan(columns.places[0]))
    features = features[:: -(-len(features) // MOST_MAPPED) or 1]
    x, y = np.rint(columns.places[:, features] * MAP_STEPS).astype(int).tolist()
    body = {
        "features": features.tolist(),
        "steps": MAP_STEPS,
        "x": x,
        "y": y,
        "group": group[features].tolist(),
        "low": [None if low != low else low for low in np.round(columns.numbers["low"][features], 3).tolist()],
        "log10_density": np.round(np.log10(columns.numbers["density"][features]), 2).tolist(),
        "groups": [{"concept": concept.concept, "name": concept.name} for concept in groups],
    }
    return json_response(body, edition, request)


def refused(store: Store) -> ApiError:
    """What is answered where a feature is asked for that there is not."""
    return ApiError(404, f"no such feature; this dictionary has features 0..{store.n_features - 1}")


@router.get("/features/{feature}", response_model=responses.FeatureDetail)
async def get_feature(request: Request, dictionary: DictionaryId, feature: FeatureId) -> Response:
    """Statistics, promoted tokens, neighbours, documents, concepts and explanations of one feature."""
    edition = await edition_soon(request, dictionary)
    store, pages = edition.store, edition.store.pages["feature_pages"]
    if not 0 <= feature < store.n_features:
        raise refused(store)
    if pages is not None:
        return page_response(pages, feature, edition, request)
    return json_response(await anyio.to_thread.run_sync(feature_of, store, feature), edition, request)


def feature_of(store: Store, feature: int) -> dict[str, Any]:
    """`FeatureDetail`: from its page, or made now, as of a dictionary without labels, which has no pages."""
    if pages := store.pages["feature_pages"]:
        return orjson.loads(pages.body(feature))
    [record] = queries.features(store, feature, feature + 1)
    return feature_body(Surroundings(store, feature), record)


@router.get("/features/{feature}/contexts", response_model=responses.ContextList)
async def get_contexts(
    request: Request,
    dictionary: DictionaryId,
    feature: FeatureId,
    group: Annotated[WindowGroup, Query(description="The strongest, the samples of every range, or both.")] = "all",
) -> Response:
    """Windows around the feature's peaks: the strongest, and samples of every range of activation."""
    edition = await edition_soon(request, dictionary)
    store, pages = edition.store, edition.store.pages["context_pages"]
    if not 0 <= feature < store.n_features:
        raise refused(store)
    if pages is not None and group == "all":
        return page_response(pages, feature, edition, request)
    body = await anyio.to_thread.run_sync(contexts_of, store, feature)
    body["items"] = [item for item in body["items"] if group in ("all", item["group"])]
    return json_response(body, edition, request)


def contexts_of(store: Store, feature: int) -> dict[str, Any]:
    """`ContextList` of all contexts: from its page, or made now."""
    if pages := store.pages["context_pages"]:
        return orjson.loads(pages.body(feature))
    max_act = float(store.columns.numbers["max_act"][feature])
    [(_, pack)] = queries.packs(store, feature, feature + 1)
    return contexts_body(store, feature, max_act, pack)


@router.get(
    "/features/{feature}/picture.png",
    response_class=Response,
    responses={200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}},
)
def get_picture(request: Request, dictionary: DictionaryId, feature: FeatureId) -> Response:
    """A picture of a feature, 1200 x 630, which other sites show where its address is posted."""
    edition = edition_of(request, dictionary)
    if not 0 <= feature < edition.store.n_features:
        raise refused(edition.store)
    headers = headers_of(edition)
    if is_unchanged(request, headers["etag"]):
        return Response(status_code=304, headers=headers)
    detail, contexts = feature_of(edition.store, feature), contexts_of(edition.store, feature)
    return Response(picture(edition.card, detail, contexts), media_type="image/png", headers=headers)


@router.get("/features/{feature}/judged", response_model=responses.JudgedList)
def list_judged(request: Request, dictionary: DictionaryId, feature: FeatureId) -> Response:
    """The windows that scorers read for a feature's explanations: where it fires or not, and what was said."""
    edition = edition_of(request, dictionary)
    if not 0 <= feature < edition.store.n_features:
        raise refused(edition.store)
    return json_response(judged_body(edition.store, feature), edition, request)
