"""The parameters by which a table of features is filtered and sorted, as the store's `Filter`."""

from __future__ import annotations

import re
from typing import Annotated, get_args

from fastapi import Query

from feature_store.lookup.filters import Area, Filter, Firing, Sort, SortKey, Span
from server.errors import ApiError

MOST_IDS, MOST_KEYS = 200, 3
Least = Annotated[float | None, Query(ge=0, description="Least value of the column.")]
Largest = Annotated[float | None, Query(ge=0, description="Largest value of the column.")]


async def table_filter(
    sort: Annotated[str, Query(max_length=64, description="Columns to sort by, such as low,density.")] = "feature",
    order: Annotated[str, Query(max_length=32, description="asc or desc of each column.")] = "asc",
    *,
    ids: Annotated[str | None, Query(max_length=2200, description="Only these, such as 3,17,42; 200 at most.")] = None,
    min_low: Least = None,
    max_low: Largest = None,
    min_score: Least = None,
    max_score: Largest = None,
    min_f2: Least = None,
    max_f2: Largest = None,
    min_density: Least = None,
    max_density: Largest = None,
    min_max_act: Least = None,
    max_max_act: Largest = None,
    min_n_documents: Least = None,
    max_n_documents: Largest = None,
    explainer: Annotated[
        str | None, Query(max_length=256, description="Labels from these, such as token,bigram.")
    ] = None,
    q: Annotated[str | None, Query(max_length=128, description="Words that a label holds, all of them.")] = None,
    area: Annotated[
        str | None, Query(max_length=64, description="A rectangle of the map: LEFT,RIGHT,BOTTOM,TOP, each 0 to 1.")
    ] = None,
    firing: Annotated[Firing, Query(description="Those that fire on the indexed text, or do not.")] = "all",
) -> Filter:
    """The filter; 422 with what is allowed if a parameter is wrong."""
    return Filter(
        _sorts(sort, order),
        ids=_ids(ids),
        ranges={
            "low": Span(min_low, max_low),
            "score": Span(min_score, max_score),
            "f2": Span(min_f2, max_f2),
            "density": Span(min_density, max_density),
            "max_act": Span(min_max_act, max_max_act),
            "n_documents": Span(min_n_documents, max_n_documents),
        },
        explainers=tuple(explainer.split(",")) if explainer else (),
        words=tuple((q or "").split()),
        firing=firing,
        area=_area(area),
    )


def _sorts(keys: str, orders: str) -> tuple[Sort, ...]:
    """Columns and directions of lists such as `low,density` and `desc,asc`; one direction may stand for all."""
    known: dict[str, SortKey] = {name: name for name in get_args(SortKey)}
    names, directions = keys.split(","), orders.split(",")
    if len(names) > MOST_KEYS or any(name not in known for name in names):
        raise ApiError(422, f"sort: up to {MOST_KEYS} of {', '.join(known)} are wanted, with commas between them")
    if set(directions) - {"asc", "desc"} or len(directions) not in (1, len(names)):
        raise ApiError(422, "order: asc or desc is wanted, once or for every column of sort")
    directions *= len(names) if len(directions) == 1 else 1
    return tuple(Sort(known[name], way == "desc") for name, way in zip(names, directions, strict=True))


def _area(text: str | None) -> Area | None:
    """The rectangle of a list such as `0.1,0.3,0.5,0.9`."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 4 or not all(re.fullmatch(r"[01](\.\d{1,12})?", part) for part in parts):
        raise ApiError(422, "area: LEFT,RIGHT,BOTTOM,TOP are wanted, each between 0 and 1, such as 0.1,0.3,0.5,0.9")
    return Area(*map(float, parts))


def _ids(text: str | None) -> list[int] | None:
    """The ids of a list such as `3,17,42`."""
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) <= 10 for part in parts) or len(parts) > MOST_IDS:
        raise ApiError(422, f"ids: up to {MOST_IDS} numbers with commas between them are wanted, such as 3,17,42")
    return [int(part) for part in parts]
