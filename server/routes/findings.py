"""Routes of findings: what commands such as `sae contrast` found about a dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path as FolderPath
from typing import Annotated

from fastapi import Path, Request
from fastapi.responses import Response

from feature_store.dictionary_files import JsonFileError
from feature_store.results.attributions import attributions_of
from feature_store.results.findings import Finding, findings_of, rows_about
from server import responses
from server.errors import ApiError
from server.routes.common import DictionaryId, FeatureId, ReadRouter, entry_of, known_parameters, never_kept

MOST_ROWS = 50  # of a table that name one feature

router = ReadRouter(prefix="/api/v1/dictionaries/{dictionary}", tags=["dictionaries"], dependencies=[known_parameters])


@router.get("/findings", response_model=list[responses.FindingItem])
def list_findings(request: Request, dictionary: DictionaryId) -> Response:
    """What was found about this dictionary; findings whose file is damaged are left out."""
    return never_kept(
        [
            {"name": name, **finding.model_dump(include={"system", "title", "summary"})}
            for name, finding in _readable(entry_of(request, dictionary).folder)
        ]
    )


@router.get("/findings/{name}", response_model=responses.FindingDetail)
def get_finding(
    request: Request,
    dictionary: DictionaryId,
    name: Annotated[str, Path(description="Name of the finding.", examples=["contrast"])],
) -> Response:
    """One finding: figures, tables, settings."""
    entry = entry_of(request, dictionary)
    folder = findings_of(entry.folder).get(name)
    if folder is None:
        raise ApiError(404, "no finding of that name; commands such as `sae contrast` make them")
    finding = _read(folder, name)
    is_current = finding.weights_sha256 == entry.edition().card.weights_sha256
    return never_kept({"name": name, "is_current": is_current, **finding.model_dump(exclude={"format_version"})})


@router.get("/features/{feature}/findings", response_model=list[responses.FindingAbout])
def list_findings_about(request: Request, dictionary: DictionaryId, feature: FeatureId) -> Response:
    """The rows of findings of the present weights that name a feature: what feeds it, what it tells, what it does."""
    entry = entry_of(request, dictionary)
    weights, items = entry.edition().card.weights_sha256, []
    for name, finding in _readable(entry.folder):
        if finding.weights_sha256 != weights:
            continue
        about = {"name": name, "system": finding.system, "title": finding.title}
        for table in finding.tables:
            rows = rows_about(table, feature)[:MOST_ROWS]
            if rows:
                columns = [column.model_dump() for column in table.columns]
                items.append({**about, "table": table.title, "columns": columns, "rows": rows})
    return never_kept(items)


@router.get("/features/{feature}/attributions", response_model=list[responses.AttributionItem])
def list_attributions(request: Request, dictionary: DictionaryId, feature: FeatureId) -> Response:
    """Which tokens and heads the strongest firings of a feature of an attention dictionary come from (`sae heads`)."""
    entry = entry_of(request, dictionary)
    edition = entry.edition()
    items = []
    for name, finding in _readable(entry.folder):
        if finding.weights_sha256 != edition.card.weights_sha256:
            continue
        for row in attributions_of(findings_of(entry.folder)[name], feature):
            texts = edition.store.vocabulary.texts(row.token_ids)
            document = edition.store.document_names.get(row.document, "")
            items.append({**row._asdict(), "name": name, "document_name": document, "texts": texts})
    return never_kept(items)


def _readable(folder: FolderPath) -> Iterator[tuple[str, Finding]]:
    """The findings of a dictionary by name, without those whose file is damaged."""
    for name, home in findings_of(folder).items():
        try:
            yield name, Finding.read(home)
        except JsonFileError:
            continue


def _read(folder: FolderPath, name: str) -> Finding:
    try:
        return Finding.read(folder)
    except JsonFileError as error:
        raise ApiError(404, f"the finding {name} cannot be read: {error}") from None
