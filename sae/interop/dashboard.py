"""What a layout of feature pages is: what a store says of features, in the files of another library."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from feature_store import queries
from feature_store.dictionary_files import DictionaryCard
from feature_store.lookup.bodies import Surroundings, contexts_body, feature_body
from feature_store.lookup.neuronpedia import Place, activation_rows
from feature_store.store import Store
from sae.errors import ConfigError
from sae.foundation.new_folder import check_new, write_new_folder
from sae.foundation.screen import Progress
from sae.interop.hook_names import hook_name
from sae.interop.published_pages import PublishedPages, import_pages
from sae.publish import dictionary

FEATURES_PER_BATCH = 128  # of a file, as SAEDashboard has it


class Page(NamedTuple):
    """All that is said of one feature: `FeatureDetail` and, unless they are left out, `ContextList`."""

    detail: dict[str, Any]
    contexts: dict[str, Any]


@dataclass(frozen=True)
class Published:
    """A dictionary with an open store, and how it is called elsewhere."""

    card: DictionaryCard
    store: Store
    with_contexts: bool

    @property
    def layer(self) -> int:
        """The number of the layer, by which both layouts sort dictionaries."""
        return int(re.sub(r"\D", "", self.card.sae["hook"].partition(".")[2]) or 0)

    @property
    def place(self) -> Place:
        """Model and source: the layer in front of the dictionary's name, as the addresses of Neuronpedia have it."""
        return Place(self.card.model.name, f"{self.layer}-{self.card.name}", hook_name(self.card.sae["hook"]))

    def batches(self, progress: Progress) -> Iterator[list[Page]]:
        """Pages of all features that fire, in files' worth."""
        around, total = Surroundings(self.store), self.store.n_features
        for first in range(0, total, FEATURES_PER_BATCH):
            last = min(first + FEATURES_PER_BATCH, total)
            features = queries.features(self.store, first, last)
            packs = dict(queries.packs(self.store, first, last)) if self.with_contexts else {}
            yield [
                Page(
                    feature_body(around, feature),
                    contexts_body(self.store, feature.row.feature, feature.row.max_act, packs[feature.row.feature])
                    if self.with_contexts
                    else {"items": [], "documents": {}},
                )
                for feature in features
                if feature.row.n_fired > 0
            ]
            progress.update(last, total)


def activations_of(place: Place, page: Page) -> list[dict[str, Any]]:
    """Rows of a feature's contexts, of which the top ones have the bin by which both layouts tell them: -1 to the maximum."""
    top = {"binMin": -1.0, "binMax": page.detail["max_act"], "binContains": -1.0}
    rows = activation_rows(place, page.detail, page.contexts)
    return [row | top if row["binContains"] is None else row for row in rows]


class Dashboard(ABC):
    """A library's way to keep pages of features. The name of its file in `dashboards/` is its name on the command line."""

    @abstractmethod
    def write(self, published: Published, folder: Path, progress: Progress) -> None:
        """Writes the pages of all features that fire."""

    def read(self, folder: Path) -> PublishedPages:
        """The pages in a folder; raises `ArtefactError` for what is none of them, `ConfigError` if they are only written."""
        raise ConfigError(f"{folder}: saedex writes this layout and does not read it.")


def export_dashboard(
    folder: Path, layout: Dashboard, target: Path, *, with_contexts: bool = True, progress: Progress | None = None
) -> None:
    """Writes the pages of a dictionary folder in another library's layout, whole or not at all.

    Raises `ConfigError` if the target exists or the hook point has no name elsewhere, `StoreError` if nothing is indexed.
    """
    check_new(target)
    card = dictionary.read_card(folder)
    with closing(Store(folder / "store")) as store:
        published = Published(card, store, with_contexts)
        write_new_folder(target, lambda place: layout.write(published, place, progress or Progress()))


def import_dashboard(
    path: Path, layout: Dashboard, target: Path, *, name: str, progress: Progress | None = None
) -> DictionaryCard:
    """Makes a dictionary folder, with a store and without weights, of pages in the layout `name`; returns its card.

    Raises `ArtefactError` for pages that cannot be, `ConfigError` if the target exists or the layout is only written.
    """
    check_new(target)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder.")
    return import_pages(layout.read(path), path, target, layout=name, progress=progress or Progress())


def as_line(row: dict[str, Any]) -> bytes:
    """A row of a .jsonl file."""
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
