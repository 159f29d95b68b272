"""Words around firings: found as people read them, and counted over every token as a plain search counts them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from feature_store.indexing.contexts import AFTER, BEFORE
from feature_store.indexing.words import WORD, WORDS_PER_FEATURE, count_words, stream_words, text_of, words_of

TEXT = "Die Häuser, the Houses; naïve 東京タワー x1y foo_bar ΑΒΓ “quoted” don't I've \U0001d518\U0001d52b\U0001d526 ǅabc end"


def tokens_of(text, sizes):
    """The text's bytes cut into tokens of the given sizes, characters torn apart."""
    data, cuts = text.encode(), []
    for size in itertools.cycle(sizes):
        if not data:
            return cuts
        cuts.append(data[:size])
        data = data[size:]


@pytest.mark.parametrize("sizes", [(1,), (2, 3), (5,), (400,)])
def test_words_of_tokens_are_those_of_the_text(sizes):
    tokens = tokens_of(TEXT, sizes)
    vocabulary = sorted(set(tokens))
    ids = np.array([vocabulary.index(token) for token in tokens])
    starts = np.zeros(len(ids), bool)
    starts[0] = True
    words = words_of(ids, starts, vocabulary)
    expected = WORD.findall(TEXT.lower())
    assert [text_of(words, n, ids, vocabulary) for n in words.number] == expected
    for first, last, word in zip(words.first, words.last, expected, strict=True):
        assert word in b"".join(tokens[first : last + 1]).decode("utf-8", "replace").lower()


def test_words_end_with_their_document_and_broken_characters_end_words():
    vocabulary = [b"", b"abc", b"def", b"gh\xe6", b"\x9d\xb1ijk", b"\xff", b"l\xe6mno"]
    read = lambda ids, starts: [  # noqa: E731
        text_of(words, n, ids, vocabulary) for words in [words_of(ids, starts, vocabulary)] for n in words.number
    ]
    ids = np.array([1, 2, 1, 0, 2])
    assert read(ids, np.array([True, False, False, True, False])) == ["abcdefabc", "def"]
    ids = np.array([3, 4, 1, 5, 2, 6])
    assert read(ids, np.arange(6) == 0) == ["gh東ijkabc", "defl", "mno"]


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(0)
    vocabulary = [f" word{chr(97 + n)}".encode() for n in range(24)] + [b"ing", b" 7", b"."]
    ids = rng.integers(0, len(vocabulary), 4000)
    starts = rng.random(4000) < 0.03
    starts[0] = True
    is_test = np.cumsum(starts) % 3 == 0
    return vocabulary, ids, starts, is_test


def windows_with_words(vocabulary, ids, starts):
    """The set of whole words in every token's window, by decoding documents."""
    runs = np.split(np.arange(len(ids)), np.flatnonzero(starts)[1:])
    sets = []
    for run in runs:
        pieces = [vocabulary[i].decode() for i in ids[run]]
        owner = np.repeat(np.arange(len(run)), [len(p) for p in pieces])
        found = [(m.group(), owner[m.start()], owner[m.end() - 1]) for m in WORD.finditer("".join(pieces))]
        for t in range(len(run)):
            start, end = max(t - BEFORE, 0), min(t + AFTER + 1, len(run))
            sets.append({word for word, first, last in found if first >= start and last < end})
    return sets


def test_counts_by_subset_equal_a_search_of_every_window(stream):
    vocabulary, ids, starts, is_test = stream
    windows = windows_with_words(vocabulary, ids, starts)
    rng = np.random.default_rng(1)
    with_worda = np.array(["worda" in w for w in windows])
    firings = [
        np.flatnonzero(with_worda & (rng.random(4000) < 0.3)),
        np.flatnonzero(rng.random(4000) < 0.02),
        np.array([], int),
    ]
    offsets = np.cumsum([0, *map(len, firings)])
    read = stream_words(ids, starts, is_test, vocabulary)
    counts = count_words(read, (offsets, np.concatenate(firings).astype(np.uint32)))
    assert text_of(read.words, counts.words[0, 0], ids, vocabulary) == "worda"
    assert (counts.words[2] == -1).all() and counts.hits[2].sum() == 0
    for feature, places in enumerate(firings):
        names = [text_of(read.words, n, ids, vocabulary) if n >= 0 else "" for n in counts.words[feature]]
        assert len(names) == WORDS_PER_FEATURE
        marks = np.array([sum(1 << w for w, name in enumerate(names) if name in window) for window in windows])
        for part in (0, 1):
            inside = is_test == part
            hits = np.bincount(marks[places[inside[places]]], minlength=1 << WORDS_PER_FEATURE)
            covered = np.bincount(marks[inside], minlength=1 << WORDS_PER_FEATURE)
            assert np.array_equal(counts.hits[feature, part], hits)
            assert np.array_equal(counts.covered[feature, part, 1:], covered[1:])


def test_the_best_words_have_the_best_f2(stream):
    vocabulary, ids, starts, is_test = stream
    windows = windows_with_words(vocabulary, ids, starts)
    places = np.flatnonzero(np.random.default_rng(2).random(4000) < 0.05)
    read = stream_words(ids, starts, is_test, vocabulary)
    counts = count_words(read, (np.array([0, len(places)]), places.astype(np.uint32)))
    explain = np.flatnonzero(~is_test)
    scores = {}
    for word in set().union(*windows):
        covered = sum(word in windows[t] for t in explain)
        hits = sum(word in windows[t] for t in places if not is_test[t])
        precision, recall = hits / max(covered, 1), hits / np.sum(~is_test[places])
        scores[word] = 5 * precision * recall / (4 * precision + recall) if hits else 0.0
    best = sorted(scores.values(), reverse=True)[:WORDS_PER_FEATURE]
    names = [text_of(read.words, n, ids, vocabulary) for n in counts.words[0]]
    assert [scores[name] for name in names] == pytest.approx(best)
