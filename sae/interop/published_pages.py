"""Pages of features that others published, without weights: what a layout says, and the store that is made of it."""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from feature_store.dictionary_files import DictionaryCard, ImportFacts, ModelFacts
from feature_store.indexing.codes import Codes, starts_from
from feature_store.indexing.contexts import ContextLimits
from feature_store.indexing.feature_rows import NO_PROMOTION, Directions, Promotion
from feature_store.indexing.generation import Corpus, Limits, corpus_of, publish
from feature_store.schema import LISTED
from feature_store.store import Store
from sae.errors import ArtefactError
from sae.foundation.new_folder import write_new_folder
from sae.foundation.screen import Progress
from sae.interop.transfer import name_of
from sae.interpret.explanation_table import ExplanationTable
from sae.interpret.intervals import NOTHING
from sae.interpret.scorer import Figure
from sae.publish import parquet
from sae.publish.dictionary import now, versions

MOST_TOKENS = 1024  # of a context
MOST_LISTED = 32  # promoted tokens and near features of a page
PADDING = ""  # fills contexts up to the longest
FEATURES_PER_DOCUMENT = 64


class Listed(NamedTuple):
    """Names or numbers with a value each, the first ones first."""

    items: list[Any]
    values: list[float]


NOTHING_LISTED = Listed([], [])


class PublishedFeature(NamedTuple):
    """What a page says of a feature. density: the share of the tokens on which it fires, of the text it was counted on."""

    feature: int
    density: float
    promoted: Listed = NOTHING_LISTED
    suppressed: Listed = NOTHING_LISTED
    neighbours: Listed = NOTHING_LISTED


class PublishedContext(NamedTuple):
    """A piece of text with the activations of one feature, one for every token; `document` says where it comes from."""

    feature: int
    tokens: list[str]
    acts: list[float]
    document: str


class PublishedText(NamedTuple):
    """An explanation of a feature, and what made it."""

    feature: int
    explainer: str
    text: str


@dataclass(frozen=True)
class PublishedPages:
    """All pages of a dictionary, whose rows are read when they are needed.

    hook: a hook point of saedex where its name is known, otherwise as it was published.
    """

    model: str
    n_layers: int | None
    hook: str
    architecture: str
    features: Iterator[PublishedFeature]
    contexts: Iterator[PublishedContext]
    texts: Iterator[PublishedText]


def import_pages(pages: PublishedPages, path: Path, target: Path, *, layout: str, progress: Progress) -> DictionaryCard:
    """Makes a dictionary folder of published pages, whole or not at all, and returns its card.

    It has a store and no weights. Raises `ArtefactError` for pages that cannot be, `ConfigError` if the target exists.
    """
    name = name_of(target)
    features = {page.feature: page for page in pages.features}
    if not features:
        raise ArtefactError(f"{path}: there are no features in it.")

    texts = _Texts(max(features) + 1)
    for context in pages.contexts:
        if context.feature not in features:
            raise ArtefactError(f"{path}: there are contexts of feature {context.feature}, which has no page.")
        texts.add(context)
        progress.update(context.feature + 1, texts.d_sae)
    if not texts.names:
        raise ArtefactError(f"{path}: it has no contexts, and nothing can be shown without them.")

    corpus, directions = texts.corpus(features)
    card = _card(pages, name, layout, path=path, d_sae=texts.d_sae, contents=texts.sha256())

    def fill(place: Path) -> None:
        facts = {"hook": pages.hook, "weights_sha256": card.weights_sha256, "text": f"contexts published for {layout}"}
        facts["promotion"] = LISTED
        store, limits = place / "store", Limits(ContextLimits(), FEATURES_PER_DOCUMENT, seed=0)
        publish(store, corpus, directions, limits, facts=facts)
        _publish_texts(store, pages.texts, set(features))
        with closing(Store(store)) as published:
            parquet.write_features(place / "features.parquet", published)
        card.write(place)

    write_new_folder(target, fill)

    return card


def _card(pages: PublishedPages, name: str, layout: str, *, path: Path, d_sae: int, contents: str) -> DictionaryCard:
    return DictionaryCard(
        format_version=DictionaryCard.current_version,
        run="imported",
        name=name,
        created=now(),
        d_model=None,
        d_out=None,
        sae={"name": name, "architecture": pages.architecture, "hook": pages.hook, "d_sae": d_sae},
        selection_dtype="float32",
        versions=versions(),
        weights_sha256=contents,
        weights_files={},
        model=ModelFacts(name=pages.model, n_layers=pages.n_layers),
        imported_from=ImportFacts(format=layout, path=path.name),
    )


def _publish_texts(store: Path, texts: Iterator[PublishedText], features: set[int]) -> None:
    """Publishes the explanations; the first one of a feature is its label. None has a score: silence is not known."""
    table = ExplanationTable(seed=0)
    for row in texts:
        if row.feature in features and row.text.strip():
            key = table.add_text(row.feature, row.explainer, row.text, None)
            if row.feature not in table.labels:
                table.choose(key, Figure("balanced_accuracy", NOTHING, nan, 0, n_neg=0))
    table.publish(store, None)


class _Texts:
    """Contexts as they come in, each different text once, with the features that fire in it."""

    def __init__(self, d_sae: int):
        self.d_sae = d_sae
        self.names: list[str] = []
        self._tokens: dict[str, int] = {PADDING: 0}
        self._contexts: dict[bytes, int] = {}
        self._seen: set[tuple[int, int]] = set()  # (context, feature)
        self._firings = (array("Q"), array("H"), array("I"), array("f"))  # context, place, feature, activation of each
        self._digest = hashlib.sha256()

    def add(self, context: PublishedContext) -> None:
        """Adds the firings of one feature in one text; a text that comes again is the same one."""
        ids = np.array([self._id(token) for token in context.tokens], np.uint32).tobytes()
        number = self._contexts.setdefault(ids, len(self._contexts))
        if number == len(self.names):
            self.names.append(context.document)

        if (number, context.feature) not in self._seen:
            self._seen.add((number, context.feature))
            contexts, places, features, acts = self._firings
            for place, act in enumerate(context.acts):
                if act > 0:
                    contexts.append(number)
                    places.append(place)
                    features.append(context.feature)
                    acts.append(act)
        self._digest.update(ids + array("f", context.acts).tobytes() + context.feature.to_bytes(4, "little"))

    def sha256(self) -> str:
        """Tells one set of pages from another."""
        return self._digest.hexdigest()

    def _id(self, token: str) -> int:
        return self._tokens.setdefault(token, len(self._tokens))

    def corpus(self, features: dict[int, PublishedFeature]) -> tuple[Corpus, Directions]:
        """(the texts with the codes that are known of them, what pages say of single features)."""
        directions = self._directions(features)
        texts = [np.frombuffer(ids, np.uint32) for ids in self._contexts]
        length = max(map(len, texts))
        ids = np.zeros((len(texts), length), np.uint32)
        is_read = np.zeros(ids.shape, bool)
        for row, text in enumerate(texts):
            ids[row, : len(text)], is_read[row, : len(text)] = text, True

        documents = np.repeat(np.arange(len(texts), dtype=np.uint32)[:, None], length, 1)
        small = len(self._tokens) <= np.iinfo(np.uint16).max
        codes = self._codes(ids.astype(np.uint16) if small else ids, documents)
        vocabulary = [token.encode("utf-8", "replace") for token in self._tokens]
        corpus = corpus_of(
            codes, vocabulary, self.names, document_keys=np.arange(len(texts), dtype=np.uint64), is_read=is_read
        )
        density = np.zeros(self.d_sae)
        for feature, page in features.items():
            density[feature] = page.density

        return corpus._replace(known_density=density), directions

    def _codes(self, ids: np.ndarray, documents: np.ndarray) -> Codes:
        contexts, places, latents, acts = (np.frombuffer(column, column.typecode) for column in self._firings)
        tokens = contexts.astype(np.int64) * ids.shape[1] + places
        order = np.lexsort((latents, tokens))
        starts = starts_from(np.bincount(tokens, minlength=ids.size))
        return Codes(ids, documents, starts, indices=latents[order], acts=acts[order])

    def _directions(self, features: dict[int, PublishedFeature]) -> Directions:
        pages = [features.get(number) for number in range(self.d_sae)]
        columns = []
        for name, number_of in (("promoted", self._id), ("suppressed", self._id), ("neighbours", self._known)):
            listed = [NOTHING_LISTED if page is None else getattr(page, name) for page in pages]
            rows = [[(number_of(item), value) for item, value in zip(*row, strict=True)] for row in listed]
            columns += _filled([[pair for pair in row if pair[0] >= 0][:MOST_LISTED] for row in rows])
        return Directions(*columns, promotion=_promoting(*columns[:2]))

    def _known(self, feature: int) -> int:
        """The number of a feature; -1 if there is no page of that number."""
        return feature if 0 <= feature < self.d_sae else -1


def _promoting(tokens: np.ndarray, values: np.ndarray) -> Promotion:
    """The features whose pages list a token as promoted [d_sae, n], the largest value first, for every token."""
    features, places = np.nonzero(tokens >= 0)
    if not len(features):
        return NO_PROMOTION
    listed, raised = tokens[features, places], values[features, places]
    order = np.lexsort((features, -raised, listed))
    starts = np.r_[0, np.flatnonzero(np.diff(listed[order])) + 1, len(order)]
    rows = [
        [(int(features[i]), float(raised[i])) for i in order[start:end][:MOST_LISTED]]
        for start, end in itertools.pairwise(starts)
    ]
    return Promotion(listed[order][starts[:-1]], *_filled(rows))


def _filled(rows: list[list[tuple[int, float]]]) -> tuple[np.ndarray, np.ndarray]:
    """(numbers, values) of rows of different length, filled with -1 and 0."""
    shape = len(rows), max(map(len, rows), default=0)
    numbers, values = np.full(shape, -1, np.int64), np.zeros(shape, np.float32)
    for place, row in enumerate(rows):
        for rank, (number, value) in enumerate(row):
            numbers[place, rank], values[place, rank] = number, value
    return numbers, values
