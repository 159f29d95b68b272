"""Routes of features: the table, one feature, its contexts, and search."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query, Request
from fastapi.responses import Response, StreamingResponse

from feature_store import queries
from feature_store.queries import SortKey, WindowGroup
from feature_store.records import FeatureRow
from feature_store.store import Store
from server import responses
from server.edition import Edition
from server.errors import ApiError
from server.routes.common import ReadRouter, edition_of, json_response, known_parameters
from server.tables import FORMATS

router = ReadRouter(prefix="/api/v1/dictionaries/{dictionary}", tags=["features"], dependencies=[known_parameters])
SearchKind = Literal["label", "current", "next", "promoted"]
Limit = Annotated[int, Query(ge=1, le=200, description="Rows per page.")]
POSSIBLE_IDS = range(1 << 32)  # the store keeps ids in 32 bits
MOST_IDS = 200
TABLE_BODIES: dict[int | str, dict[str, Any]] = {
    200: {"content": {table.media_type: {"schema": {"type": "string"}} for table in FORMATS.values()}}
}
Share = Annotated[float | None, Query(ge=0, le=1)]


@router.get("/features", response_model=responses.FeaturePage, responses=TABLE_BODIES)
def list_features(
    request: Request,
    dictionary: str,
    sort: SortKey = "feature",
    order: Literal["asc", "desc"] = "asc",
    *,
    limit: Limit = 50,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    ids: Annotated[str | None, Query(max_length=2200, description="Only these, such as 3,17,42; 200 at most.")] = None,
    min_density: Share = None,
    max_density: Share = None,
    min_score: Share = None,
    explainer: Annotated[str | None, Query(max_length=64)] = None,
    q: Annotated[str | None, Query(max_length=128, description="Part of a label.")] = None,
    alive: bool = False,
    fields: Annotated[str | None, Query(max_length=256, description="Only these, such as feature,label.")] = None,
    format: Annotated[
        Literal["json", "ndjson", "csv"],
        Query(description="json: one page. ndjson and csv: all features that pass, whatever limit and offset."),
    ] = "json",
) -> Response:
    """Features that pass all filters, sorted: one page of them, or all as a file."""
    edition = edition_of(request, dictionary)
    store = edition.store
    if explainer is not None and explainer not in (known := dict(queries.explainers_of_labels(store))):
        raise ApiError(422, f"explainer: no label comes from it; labels come from {', '.join(known) or 'none'}")
    wanted = queries.Filter(
        sort=sort, descending=order == "desc", ids=_ids(ids), min_density=min_density, max_density=max_density,
        min_score=min_score, explainer=explainer, query=q, alive=alive,
    )  # fmt: skip
    names = _fields(fields)

    if format != "json":
        rows = ([chosen(row, names) for row in part] for part in queries.every_feature(store, wanted))
        return StreamingResponse(
            FORMATS[format].write(rows),
            media_type=FORMATS[format].media_type,
            headers={"content-disposition": f'attachment; filename="features.{format}"'},
        )

    page = queries.features(store, wanted, limit=limit, offset=offset)
    items = [chosen(row, names) for row in page.rows]
    body = {"items": items, "floor": _floor(edition), "total": page.total, "limit": limit, "offset": offset}
    return json_response(body, edition, request)


def _ids(text: str | None) -> list[int] | None:
    """The ids of a list such as `3,17,42`."""
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) <= 10 for part in parts) or len(parts) > MOST_IDS:
        raise ApiError(422, f"ids: up to {MOST_IDS} numbers with commas between them are wanted, such as 3,17,42")
    return [int(part) for part in parts]


def _fields(text: str | None) -> list[str]:
    """The names in a list such as `feature,label`; all if there is none."""
    known = list(responses.FeatureItem.model_fields)
    names = text.split(",") if text else known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ApiError(422, f"fields: {unknown[0]!r} is none of them; there are {', '.join(known)}")
    return names


def chosen(row: FeatureRow, names: list[str]) -> dict[str, Any]:
    """Some fields of a row, in this order."""
    values = responses.item(row)
    return {name: values[name] for name in names}


@router.get("/explainers", response_model=responses.ExplainerList)
def list_explainers(request: Request, dictionary: str) -> Response:
    """The explainers that labels of this dictionary come from, the one with most labels first."""
    edition = edition_of(request, dictionary)
    store = edition.store
    items = [{"explainer": name, "features": n} for name, n in queries.explainers_of_labels(store)]
    return json_response({"items": items}, edition, request)


def _floor(edition: Edition) -> float | None:
    return edition.labels.floor if edition.labels else None


def _refused(store: Store) -> ApiError:
    total = queries.counts(store)["features"]
    return ApiError(404, f"no such feature; this dictionary has features 0..{total - 1}")


@router.get("/features/{feature}", response_model=responses.FeatureDetail)
def get_feature(request: Request, dictionary: str, feature: int) -> Response:
    """Statistics, promoted tokens, neighbours and explanations of one feature."""
    edition = edition_of(request, dictionary)
    store = edition.store
    record = queries.feature(store, feature) if feature in POSSIBLE_IDS else None
    if record is None:
        raise _refused(store)
    labels = queries.labels(store, [f for f, _ in record.neighbours])
    return json_response(responses.detail(store, record, labels) | {"floor": _floor(edition)}, edition, request)


@router.get("/features/{feature}/contexts", response_model=responses.ContextList)
def get_contexts(request: Request, dictionary: str, feature: int, group: WindowGroup = "all") -> Response:
    """Windows around the feature's peaks: the strongest, and samples of every range of activation."""
    edition = edition_of(request, dictionary)
    store = edition.store
    row = queries.feature_row(store, feature) if feature in POSSIBLE_IDS else None
    if row is None:
        raise _refused(store)
    items = [responses.context(store, w) for w in queries.windows(store, feature, group)]
    body = {"feature": feature, "max_act": row.max_act, "items": items}
    return json_response(body, edition, request)


@router.get("/search", response_model=responses.SearchResult)
def search(
    request: Request,
    dictionary: str,
    q: Annotated[str, Query(min_length=1, max_length=128, description="Words of a label, or a token.")],
    kind: SearchKind = "label",
    *,
    limit: Limit = 50,
) -> Response:
    """label: text in labels; current / next: fires on / before a token; promoted: raises a token's logit."""
    edition = edition_of(request, dictionary)
    store = edition.store
    if kind == "label":
        page = queries.features(store, queries.Filter(query=q, sort="low", descending=True), limit=limit)
        hits = [(row, None) for row in page.rows]
    elif kind == "promoted":
        hits = [(row, None) for row in queries.features_promoting(store, store.tokens_like(q), limit)]
    else:
        hits = queries.features_of_token(store, store.tokens_like(q), kind, limit)

    items = [responses.item(row) | {"times": times} for row, times in hits]
    return json_response({"query": q, "kind": kind, "items": items}, edition, request)
