"""Routes of comparisons: which features of a dictionary are found again in another, as `sae compare` found them."""

from __future__ import annotations

from pathlib import Path as FolderPath
from typing import Annotated, Any

from fastapi import Path, Request
from fastapi.responses import Response

from feature_store.dictionary_files import JsonFileError
from feature_store.results.comparison import KINDS, Comparison, Side, comparisons_of
from server import responses
from server.catalogue import Catalogue
from server.errors import ApiError
from server.routes.common import DictionaryId, ReadRouter, entry_of, known_parameters, never_kept

router = ReadRouter(prefix="/api/v1/dictionaries/{dictionary}", tags=["dictionaries"], dependencies=[known_parameters])


@router.get("/comparisons", response_model=list[responses.ComparisonItem])
def list_comparisons(request: Request, dictionary: DictionaryId) -> Response:
    """The dictionaries that this one was compared with."""
    catalogue: Catalogue = request.app.state.catalogue
    entry = entry_of(request, dictionary)
    items = []
    for other, folder in comparisons_of(entry.folder).items():
        comparison = _read(folder, other)
        items.append(
            {
                "other": other,
                "is_served": other in catalogue,
                "counts": _counts(comparison.this),
                "tokens": comparison.tokens,
            }
        )
    return never_kept(items)


@router.get("/comparisons/{other}", response_model=responses.ComparisonDetail)
def get_comparison(
    request: Request,
    dictionary: DictionaryId,
    other: Annotated[str, Path(description="Id of the dictionary that it was compared with.")],
) -> Response:
    """How every feature corresponds, in columns by feature, seen from both sides."""
    catalogue: Catalogue = request.app.state.catalogue
    entry = entry_of(request, dictionary)
    folder = comparisons_of(entry.folder).get(other)
    if folder is None:
        raise ApiError(404, "not compared with a dictionary of that id; `sae compare A B` does that")
    comparison = _read(folder, other)
    return never_kept({
        "is_served": other in catalogue,
        "is_current": comparison.this.weights_sha256 == entry.edition().card.weights_sha256,
        "kinds": KINDS,
        "found": comparison.found,
        "random_cosine": comparison.random_cosine,
        "random_correlation": comparison.random_correlation,
        "tokens": comparison.tokens,
        "twin": comparison.twin.model_dump() if comparison.twin else None,
        **{name: _side(side) for name, side in (("this", comparison.this), ("other", comparison.other))},
    })  # fmt: skip


def _read(folder: FolderPath, other: str) -> Comparison:
    try:
        return Comparison.read(folder)
    except JsonFileError as error:
        raise ApiError(404, f"the comparison with {other} cannot be read: {error}") from None


def _counts(side: Side) -> dict[str, int]:
    return {str(kind): n for kind, n in side.counts().items()}


def _side(side: Side) -> dict[str, Any]:
    return side.model_dump(exclude={"weights_sha256"}) | {"counts": _counts(side)}
