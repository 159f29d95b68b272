"""Counts behind model-free labels equal plain counting on a small stream."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from fixtures import STREAM_CONTEXTS as CONTEXTS
from fixtures import STREAM_D_SAE as D_SAE
from fixtures import STREAM_LENGTH as LENGTH
from fixtures import STREAM_TOKENS as TOKENS
from fixtures import codes, collect

from feature_store.indexing.contexts import ContextLimits
from feature_store.indexing.formats import (
    CLASSES,
    FORMATS,
    N_POSITIONS,
    POSITION_EDGES,
    classes_of,
    first_of_same_text,
    position_name,
)
from feature_store.indexing.negatives import hard_negatives
from feature_store.indexing.statistics import BIGRAMS_PER_FEATURE, GROUPS
from feature_store.indexing.tables import count, joined, stream_of
from feature_store.indexing.tables import in_test_part as halves

SAME = first_of_same_text(TOKENS).tolist()  # the last token is the first's text in another case


@pytest.fixture(scope="module")
def counted():
    stream = codes(7)
    stream.documents[:] = np.arange(CONTEXTS)[:, None] * 2 + (np.arange(LENGTH) >= 12)  # two documents a context
    found = collect(stream, ContextLimits(), 60)
    is_test = halves(np.arange(int(stream.documents.max()) + 1))
    tokens = stream_of(stream.codes, TOKENS, is_test)

    def counts(memory_bytes, features=None):
        return count(
            stream.codes, tokens, found, promoted=np.zeros((D_SAE, 3)), n_coactive=3,
            memory_bytes=memory_bytes, features=features,
        )  # fmt: skip

    whole = counts(1 << 20)
    parts = [counts(memory, slice(a, b)) for memory, (a, b) in zip((1, 1 << 20), ((0, 5), (5, D_SAE)), strict=True)]
    for one, other in zip(_flat(whole), _flat(joined(parts)), strict=True):
        np.testing.assert_array_equal(one, other)  # how features are shared out changes nothing
    return stream, found, is_test, whole


def _flat(tables):
    return [array for part in tables for array in (part if isinstance(part, tuple) else (part,))]


def firings(stream, maximum):
    """(feature, context, position, activation) of every firing, and whether it is strong."""
    for c, p, j in zip(*(stream.acts > 0).nonzero(), strict=True):
        f, act = int(stream.indices[c, p, j]), float(stream.acts[c, p, j])
        yield f, c, p, act, act >= np.float32(maximum[f] / 3)


def place(stream, c, p):
    return p if p < 12 else p - 12


def test_positions_and_formats(counted):
    stream, found, is_test, tables = counted
    positions, formats = Counter(), Counter()
    for f, c, p, _, strong in firings(stream, found.maximum):
        if strong:
            part, at = int(is_test[stream.documents[c, p]]), place(stream, c, p)
            positions[f, part, int((at >= POSITION_EDGES).sum()) - 1] += 1
            starts = at == 0 or TOKENS[stream.ids[c, p - 1]] == b"\n"
            formats[f, part, int(classes_of(TOKENS)[stream.ids[c, p]]) + len(CLASSES) * starts] += 1
    for (f, part, b), n in positions.items():
        assert tables.statistics.position[f, part, b] == n
    for (f, part, b), n in formats.items():
        assert tables.statistics.format[f, part, b] == n
    assert tables.statistics.position.sum() == sum(positions.values()) == tables.statistics.format.sum()
    names = [FORMATS[i] for i in classes_of(TOKENS)]
    assert names == ["words", "parts of words", "capitalised words", "numbers", "line breaks", "punctuation",
                     "capitalised words"]  # fmt: skip
    assert [position_name(b) for b in (0, 4, N_POSITIONS - 1)] == ["0", "4 to 7", "1024 and later"]


def test_bigrams(counted):
    stream, found, is_test, tables = counted
    hits, occurrences = Counter(), Counter()
    for c in range(CONTEXTS):
        for p in range(1, LENGTH):
            if p != 12:
                pair = SAME[stream.ids[c, p - 1]], SAME[stream.ids[c, p]]
                occurrences[pair, bool(is_test[stream.documents[c, p]])] += 1
    for f, c, p, _, strong in firings(stream, found.maximum):
        if strong and place(stream, c, p) > 0:
            pair = SAME[stream.ids[c, p - 1]], SAME[stream.ids[c, p]]
            hits[f, pair, bool(is_test[stream.documents[c, p]])] += 1
    rows = tables.statistics.bigrams.tolist()
    for f, first, second, explain, test, occurs_explain, occurs_test in rows:
        pair = first, second
        assert (explain, test) == (hits[f, pair, False], hits[f, pair, True])
        assert (occurs_explain, occurs_test) == (occurrences[pair, False], occurrences[pair, True])
    for f in range(D_SAE):
        most = sorted((n for (g, _, part), n in hits.items() if g == f and not part), reverse=True)
        assert [r[3] for r in rows if r[0] == f] == most[:BIGRAMS_PER_FEATURE]


def test_lookup_is_the_correlation_with_the_mean_of_the_token(counted):
    stream, _, is_test, tables = counted
    dense = np.zeros((D_SAE, CONTEXTS, LENGTH))
    for c, p, j in zip(*(stream.acts > 0).nonzero(), strict=True):
        dense[stream.indices[c, p, j], c, p] = stream.acts[c, p, j]
    test = is_test[stream.documents]
    for f in range(D_SAE):
        table = [dense[f][~test & (stream.ids == t)].mean() for t in range(len(TOKENS))]
        a, p = dense[f][test], np.array(table)[stream.ids[test]]
        sums = tables.statistics.lookup[f]
        assert sums.shape == (GROUPS, 5)
        np.testing.assert_allclose(sums.sum(0), [a.sum(), a @ a, p.sum(), p @ p, a @ p], rtol=1e-6)


def test_coactive_features_and_hard_negatives(counted):
    stream, found, _, tables = counted
    fires = np.zeros((D_SAE, CONTEXTS * LENGTH), bool)
    for t, (latents, acts) in enumerate(zip(stream.indices.reshape(-1, 3), stream.acts.reshape(-1, 3), strict=True)):
        fires[latents[acts > 0], t] = True
    both = fires.astype(float) @ fires.T.astype(float)
    cosine = both / np.sqrt(np.outer(both.diagonal(), both.diagonal()))
    np.fill_diagonal(cosine, -1)
    for f in range(D_SAE):
        mine, scores = tables.statistics.coactive[f], tables.statistics.coactive_scores[f]
        np.testing.assert_allclose(scores, np.sort(cosine[f])[::-1][: len(scores)], rtol=1e-5)
        np.testing.assert_allclose(scores, cosine[f, mine], rtol=1e-5)
    sources = np.stack([tables.statistics.coactive, tables.statistics.coactive[:, ::-1]], axis=1)
    rows = hard_negatives(sources, found.top_context, found.top_position, stream.codes)
    for f, records in enumerate(rows):
        for record in records:
            c, p = (
                found.top_context[record["source"], record["rank"]],
                int(found.top_position[record["source"], record["rank"]]),
            )
            window = slice(max(0, p - 20), p + 12)
            assert not (stream.acts[c, window] * (stream.indices[c, window] == f)).any()
