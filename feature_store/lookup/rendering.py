"""Renders the pages of a store: what the API answers for every feature, as the files that `pages` reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson

from feature_store import queries
from feature_store.lookup import pages
from feature_store.lookup.bodies import Surroundings, contexts_body, feature_body
from feature_store.pointer import PAGES
from feature_store.store import Store

FEATURES = 512  # read at a time


def write_pages(store: Store) -> Iterator[tuple[str, Path]]:
    """Writes the pages that a store has not: (kind, file under construction). Without explanations features have none."""
    for kind in PAGES:
        if store.pages[kind] is not None or (kind == "feature_pages" and "explanations" not in store.pointer):
            continue
        path = store.folder / f"{kind}.building"
        bodies = feature_bodies(store) if kind == "feature_pages" else context_bodies(store)
        pages.write(path, store.source_of(kind), store.columns.n, bodies)
        yield kind, path


def feature_bodies(store: Store) -> Iterator[bytes]:
    """`FeatureDetail` of every feature, by id, in JSON."""
    around = Surroundings(store)
    for first in range(0, store.columns.n, FEATURES):
        for feature in queries.features(store, first, first + FEATURES):
            yield orjson.dumps(feature_body(around, feature))


def context_bodies(store: Store) -> Iterator[bytes]:
    """`ContextList` of every feature, by id, in JSON."""
    maxima = store.columns.numbers["max_act"].tolist()
    for first in range(0, store.columns.n, FEATURES):
        for feature, pack in queries.packs(store, first, first + FEATURES):
            yield orjson.dumps(contexts_body(store, feature, maxima[feature], pack))
