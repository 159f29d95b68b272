"""What people said of a dictionary's features in the explorer, as texts to explain them with."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from feature_store.people.database import People, PeopleError
from sae.errors import ArtefactError


def texts_said(file: Path, weights_sha256: str) -> dict[int, list[str]]:
    """The labels that count, by feature, each text once; raises `ArtefactError` if the file is not one of people's entries."""
    texts: dict[int, dict[str, None]] = {}
    try:
        with closing(People(file)) as people:
            for record in people.said(weights_sha256, kind="label"):
                texts.setdefault(record.place.feature, {})[record.entry.value or ""] = None
    except PeopleError as error:
        raise ArtefactError(str(error)) from None
    return {feature: list(found) for feature, found in texts.items()}
