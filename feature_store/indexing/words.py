"""Words around strong firings: how often a feature fires in windows that hold a word, over all tokens of a stream."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt
from numba import njit

from feature_store.indexing.contexts import AFTER, BEFORE

WORD = re.compile(r"[^\W\d_]{3,}")  # what counts as a word: three letters in a row or more
SHORTEST = 3
WORDS_PER_FEATURE = 6
SUBSETS = 1 << WORDS_PER_FEATURE
TABLE = 0x20000  # code points with an entry of their own; later ones (rare ideographs) are letters


class Words(NamedTuple):
    """The words of a stream, in its order: their numbers, first and last tokens; and all of them by number.

    `spans` are (place of the first token, byte inside it, bytes) of one occurrence of every word.
    """

    number: UInt[np.ndarray, " occurrences"]
    first: UInt[np.ndarray, " occurrences"]
    last: UInt[np.ndarray, " occurrences"]
    spans: Int[np.ndarray, "words 3"]


class Windows(NamedTuple):
    """The window of every token: it begins and ends inside the token's run of one document in one context."""

    run: UInt[np.ndarray, " tokens"]
    starts: Int[np.ndarray, " bounds"]  # where runs start; the last one is the number of tokens


class WordCounts(NamedTuple):
    """Counts by subset of a feature's words: how many strong firings, and how many tokens, have exactly these words in
    their window, in (explain, test) documents. Without any word the tokens are not counted.
    """

    words: Int[np.ndarray, "features words"]  # numbers, -1 where there are fewer
    hits: UInt[np.ndarray, "features 2 subsets"]
    covered: UInt[np.ndarray, "features 2 subsets"]


@lru_cache(maxsize=1)
def _letters() -> tuple[np.ndarray, np.ndarray]:
    """(whether each code point is a letter of words, the code point in lower case)."""
    is_letter, lower = np.zeros(TABLE, bool), np.arange(TABLE, dtype=np.int64)
    one = re.compile(WORD.pattern.removesuffix(f"{{{SHORTEST},}}"))
    for code in range(TABLE):
        character = chr(code)
        is_letter[code] = one.match(character) is not None
        small = character.lower()
        if len(small) == 1:
            lower[code] = ord(small)
    return is_letter, lower


@njit(cache=True, nogil=True)
def _decoded(byte, code, missing):  # pragma: no cover (compiled)
    """(code point so far, bytes missing, whether the byte begins a character) after one more byte of UTF-8.

    A byte that cannot stand here gives the code point -1.
    """
    if missing > 0 and byte & 0xC0 == 0x80:
        return (code << 6) | (byte & 0x3F), missing - 1, False
    if byte < 0x80:
        return byte, 0, True
    if byte >= 0xF0:
        return byte & 0x07, 3, True
    if byte >= 0xE0:
        return byte & 0x0F, 2, True
    if byte >= 0xC0:
        return byte & 0x1F, 1, True
    return -1, 0, True


@njit(cache=True, nogil=True)
def _scan(ids, starts, vocabulary, offsets, is_letter, lower, shortest):  # pragma: no cover (compiled)
    """Rows (hash, first token, last token, byte inside the first, bytes) of all words; documents end words."""
    rows = np.empty((ids.size + 1, 5), np.int64)
    n, length, value = 0, 0, np.uint64(0)
    code, missing, begun_at, begun_byte, n_bytes = 0, 0, 0, 0, 0
    ends_word = False

    for t in range(ids.size + 1):
        ends_word |= t == ids.size or starts[t]
        begin, stop = (0, 1) if t == ids.size else (offsets[ids[t]], offsets[ids[t] + 1])
        for b in range(begin, stop):
            missing = 0 if ends_word else missing
            code, left, begins = _decoded(0 if t == ids.size else np.int64(vocabulary[b]), code, missing)
            ends_word |= begins and missing > 0  # the character before was never completed
            missing = left
            if begins:
                begun_at, begun_byte, n_bytes = t, b - begin, 0
            n_bytes += 1
            letter = missing == 0 and (code >= is_letter.size or (code >= 0 and is_letter[code]))
            if length > 0 and (ends_word or (missing == 0 and not letter)):
                n += length >= shortest
                length = 0
            ends_word = False
            if letter:
                if length == 0:
                    if n == len(rows):
                        longer = np.empty((2 * n, 5), np.int64)
                        longer[:n] = rows
                        rows = longer
                    value = np.uint64(0)
                    rows[n, 1], rows[n, 3], rows[n, 4] = begun_at, begun_byte, 0
                small = np.uint64(lower[code] if code < lower.size else code)
                value = (value ^ small) * np.uint64(0x9E3779B97F4A7C15)
                value ^= value >> np.uint64(29)
                length += 1
                rows[n, 0], rows[n, 2] = np.int64(value), t
                rows[n, 4] += n_bytes

    return rows[:n].copy()


def words_of(ids: Int[np.ndarray, " tokens"], starts: Bool[np.ndarray, " tokens"], vocabulary: list[bytes]) -> Words:
    """The words of a stream; `starts` marks the tokens with which a document or a context begins."""
    offsets = np.concatenate([[0], np.cumsum([len(token) for token in vocabulary])]).astype(np.int64)
    text = np.frombuffer(b"".join(vocabulary), np.uint8)
    rows = _scan(ids, starts, text, offsets, *_letters(), SHORTEST)
    _, example, number = np.unique(rows[:, 0], return_index=True, return_inverse=True)
    number = number.reshape(-1)
    return Words(
        number.astype(np.uint32),
        rows[:, 1].astype(np.uint32),
        rows[:, 2].astype(np.uint32),
        spans=rows[example][:, [1, 3, 4]],
    )


def text_of(words: Words, number: int, ids: Int[np.ndarray, " tokens"], vocabulary: list[bytes]) -> str:
    """The text of a word, in lower case."""
    place, offset, n_bytes = words.spans[number].tolist()
    text = b""
    while len(text) < offset + n_bytes:
        text += vocabulary[ids[place]]
        place += 1
    return text[offset : offset + n_bytes].decode("utf-8", "replace").lower()


def windows_of_stream(starts: Bool[np.ndarray, " tokens"]) -> Windows:
    """The windows of all tokens of a stream."""
    return Windows((np.cumsum(starts) - 1).astype(np.uint32), np.append(np.flatnonzero(starts), starts.size))


@njit(cache=True, nogil=True)
def _reach(first, last, run, run_starts):  # pragma: no cover (compiled)
    """(start, end) of the tokens whose window holds the whole word from `first` to `last`."""
    r = run[first]
    return max(np.int64(last) - AFTER, run_starts[r]), min(np.int64(first) + BEFORE + 1, run_starts[r + 1])


class Reaches(NamedTuple):
    """For every word the tokens whose window holds it, as stretches [begin, stop) that do not touch, in rising order.

    Those of a word end at its number of `ends`, and begin where those of the word before end.
    """

    begins: Int[np.ndarray, " stretches"]
    stops: Int[np.ndarray, " stretches"]
    ends: Int[np.ndarray, " words"]

    def covered(self, tests_before: Int[np.ndarray, " tokens_and_one"]) -> Int[np.ndarray, "2 words"]:
        """Tokens whose window holds each word, in (explain, test) documents."""
        tests = tests_before[self.stops] - tests_before[self.begins]
        counts = np.stack([self.stops - self.begins - tests, tests])
        sums = np.zeros((2, len(self.begins) + 1), np.int64)
        np.cumsum(counts, axis=1, out=sums[:, 1:])
        return np.diff(sums[:, np.concatenate([[0], self.ends])], axis=1)


@njit(cache=True, nogil=True)
def _reaches(first, last, order, ends, run, run_starts):  # pragma: no cover (compiled)
    """(begins, stops, ends): see `Reaches`; `order` lists the occurrences by word, `ends` where each word's end in it."""
    begins, stops = np.empty(order.size, np.int64), np.empty(order.size, np.int64)
    stretch_ends = np.empty(ends.size, np.int64)
    n, o = 0, 0

    for word in range(ends.size):
        begin = n
        while o < ends[word]:
            start, stop = _reach(first[order[o]], last[order[o]], run, run_starts)
            o += 1
            if stop <= start:
                continue
            if n > begin and start <= stops[n - 1]:
                stops[n - 1] = max(stops[n - 1], stop)
            else:
                begins[n], stops[n] = start, stop
                n += 1
        stretch_ends[word] = n

    return begins[:n].copy(), stops[:n].copy(), stretch_ends


@njit(cache=True, nogil=True)
def _best_words(
    offsets, strong, number, first, last, run, run_starts, is_test, covered, keep
):  # pragma: no cover (compiled)
    """[features, keep] the words with the best F2 over the explain tokens, -1 where fewer are in two windows."""
    best = np.full((offsets.size - 1, keep), -1, np.int64)
    n_words = covered.shape[1]
    hits, seen = np.zeros(n_words, np.int64), np.full(n_words, -1, np.int64)
    touched = np.empty(n_words, np.int64)

    for f in range(offsets.size - 1):
        n_touched, n_strong = 0, 0
        for p in range(offsets[f], offsets[f + 1]):
            t = np.int64(strong[p])
            if is_test[t]:
                continue
            n_strong += 1
            start, end = max(t - BEFORE, run_starts[run[t]]), min(t + AFTER + 1, run_starts[run[t] + 1])
            for o in range(np.searchsorted(first, start), number.size):
                if first[o] >= end:
                    break
                w = number[o]
                if last[o] < end and seen[w] != p:
                    seen[w] = p
                    if hits[w] == 0:
                        touched[n_touched] = w
                        n_touched += 1
                    hits[w] += 1
        scores = np.zeros(n_touched)
        for i in range(n_touched):
            w = touched[i]
            precision, recall = hits[w] / max(covered[0, w], 1), hits[w] / n_strong
            scores[i] = 5 * precision * recall / (4 * precision + recall) if hits[w] > 1 else 0.0
            hits[w], seen[w] = 0, -1
        n_best = 0
        for i in np.argsort(-scores, kind="mergesort")[:keep]:
            if scores[i] > 0:
                best[f, n_best] = touched[i]
                n_best += 1

    return best


@njit(cache=True, nogil=True)
def _subsets(offsets, strong, begins, stops, ends, is_test, tests_before, best):  # pragma: no cover (compiled)
    """([features, 2, subsets] strong firings, the same of tokens) by the subset of the feature's words in the window.

    The stretches of all words of a feature are walked through together, from one place where a window gains or loses a
    word to the next: what lies between has one subset.
    """
    n_features, keep = best.shape
    hits = np.zeros((n_features, 2, 1 << keep), np.uint32)
    covered = np.zeros((n_features, 2, 1 << keep), np.uint32)
    next_stretch, end_stretch = np.zeros(keep, np.int64), np.zeros(keep, np.int64)
    end_of_text = np.int64(is_test.size)

    for f in range(n_features):
        for w in range(keep):
            word = best[f, w]
            end_stretch[w] = ends[word] if word >= 0 else 0
            next_stretch[w] = (ends[word - 1] if word > 0 else 0) if word >= 0 else 0
        subset, token, p = 0, np.int64(0), offsets[f]
        while token < end_of_text:
            change, changed = end_of_text, 0
            for w in range(keep):
                s = next_stretch[w]
                if s < end_stretch[w]:
                    place = stops[s] if subset >> w & 1 else begins[s]
                    if place < change:
                        change, changed = place, 0
                    if place == change:
                        changed |= 1 << w
            if subset > 0:
                n_test = tests_before[change] - tests_before[token]
                covered[f, 0, subset] += change - token - n_test
                covered[f, 1, subset] += n_test
            while p < offsets[f + 1] and strong[p] < change:
                hits[f, int(is_test[strong[p]]), subset] += 1
                p += 1
            for w in range(keep):
                if changed >> w & 1 and subset >> w & 1:
                    next_stretch[w] += 1
            subset ^= changed
            token = change

    return hits, covered


class StreamWords(NamedTuple):
    """All about the words of a stream that counting over any features needs; `tests_before` every token, and the end."""

    words: Words
    windows: Windows
    reaches: Reaches
    is_test: Bool[np.ndarray, " tokens"]
    tests_before: Int[np.ndarray, " tokens_and_one"]
    covered: Int[np.ndarray, "2 words"]


def stream_words(
    ids: Int[np.ndarray, " tokens"],
    starts: Bool[np.ndarray, " tokens"],
    is_test: Bool[np.ndarray, " tokens"],
    vocabulary: list[bytes],
) -> StreamWords:
    """The words of a stream with their windows; `starts` and `is_test` are about every token."""
    words, windows = words_of(ids, starts, vocabulary), windows_of_stream(starts)
    order = np.argsort(words.number, kind="stable")
    ends = np.cumsum(np.bincount(words.number, minlength=len(words.spans)))
    reaches = Reaches(*_reaches(words.first, words.last, order, ends, *windows))
    tests_before = np.concatenate([[0], np.cumsum(is_test)])
    return StreamWords(
        words,
        windows,
        reaches,
        is_test,
        tests_before=tests_before,
        covered=reaches.covered(tests_before),
    )


def count_words(
    stream: StreamWords, strong: tuple[Int[np.ndarray, " offsets"], UInt[np.ndarray, " strong"]]
) -> WordCounts:
    """The best words of consecutive features, chosen by F2 over explain documents, with their counts by subset.

    `strong` is (offsets, places) of their strong firings. A window holds a word if it holds all tokens of it.
    """
    words, is_test = stream.words, stream.is_test
    best = _best_words(
        *strong, words.number, words.first, words.last, *stream.windows, is_test, stream.covered, WORDS_PER_FEATURE
    )
    return WordCounts(best, *_subsets(*strong, *stream.reaches, is_test, stream.tests_before, best))
