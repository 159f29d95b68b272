"""Contexts collected in one streaming pass equal a brute-force sort, ties and duplicates included."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from fixtures import STREAM_CONTEXTS as CONTEXTS
from fixtures import STREAM_D_SAE as D_SAE
from fixtures import STREAM_LENGTH as LENGTH
from fixtures import STREAM_TOKENS as TOKENS
from fixtures import CodeRows, codes, collect

from feature_store.indexing.contexts import (
    HASH_AFTER,
    HASH_BEFORE,
    N_BINS,
    N_STRATA,
    NO_CONTEXT,
    ContextLimits,
)
from feature_store.indexing.document_features import count_documents
from feature_store.indexing.tables import count, stream_of
from feature_store.indexing.tables import in_test_part as documents_for_testing
from feature_store.indexing.windows import Peaks, random_windows, windows_of
from feature_store.packing import ACT_LEVELS, WINDOW, Pack, dense_windows, pack_columns, unpack_columns
from sae.publish.code_files import CodeFiles


def peaks(stream):
    """feature -> [(activation, context, position)] of the first strongest firing of each context."""
    found = defaultdict(list)
    for c in range(len(stream.ids)):
        best = {}
        for p in range(LENGTH):
            for f, act in zip(stream.indices[c, p].tolist(), stream.acts[c, p].tolist(), strict=True):
                if act > 0 and act > best.get(f, (0, 0))[0]:
                    best[f] = (act, p)
        for f, (act, p) in best.items():
            found[f].append((act, c, p))
    return found


def text(stream, context, position):
    row = stream.ids[context]
    return tuple(row[max(0, position - HASH_BEFORE) : position + HASH_AFTER + 1].tolist())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("batch", [1, 7, 60])
def test_top_contexts_equal_brute_force(seed, batch):
    stream = codes(seed)
    found = collect(stream, ContextLimits(n_top=6, n_per_stratum=2), batch)
    for f, candidates in peaks(stream).items():
        candidates.sort(key=lambda x: (-x[0], x[1]))
        expected, seen = [], set()
        for act, c, p in candidates:
            if text(stream, c, p) not in seen:
                seen.add(text(stream, c, p))
                expected.append((act, c, p))
        got = [
            (float(a), int(c), int(p))
            for a, c, p in zip(found.top_act[f], found.top_context[f], found.top_position[f], strict=True)
            if c != NO_CONTEXT
        ]
        assert got == expected[:6]


def test_no_stratified_contexts_may_be_asked_for():
    found = collect(codes(0), ContextLimits(n_top=2, n_per_stratum=0), 20)
    assert found.stratum_context.shape[2] == 0 and found.stratum_contexts.sum() > 0


def test_counts_are_exact():
    stream = codes(3)
    found = collect(stream, ContextLimits(), 13)
    fired = stream.acts > 0
    for f in range(D_SAE):
        mine = stream.acts[fired & (stream.indices == f)]
        assert found.n_fired[f] == len(mine)
        assert found.total[f] == pytest.approx(mine.sum())
        assert found.maximum[f] == mine.max()
        assert found.histogram[f].sum() == len(mine)
    assert found.n_tokens == CONTEXTS * (LENGTH - 1)
    assert (found.n_fired / (CONTEXTS * LENGTH)).sum() == pytest.approx(fired.sum() / (CONTEXTS * LENGTH))


def test_stratified_sample_is_uniform_and_independent_of_batches():
    stream, limits = codes(1), ContextLimits(n_top=2, n_per_stratum=2)
    a, b = collect(stream, limits, 60), collect(stream, limits, 1)
    assert np.array_equal(a.stratum_context, b.stratum_context)
    found = peaks(stream)
    for f in range(D_SAE):
        assert a.stratum_contexts[f].sum() == len(found[f])
    # Over many seeds every context of a stratum is kept equally often.
    kept, f = Counter(), 0
    stratum = int(a.stratum_contexts[f].argmax())
    available = int(a.stratum_contexts[f, stratum])
    for seed in range(600):
        kept.update(collect(stream, limits, 60, seed).stratum_context[f, stratum].tolist())
    assert len(kept) == available
    expected = 600 * 2 / available
    assert max(kept.values()) < 1.6 * expected and min(kept.values()) > 0.5 * expected


def test_windows_hold_the_activations_of_the_stream():
    stream = codes(2)
    found = collect(stream, ContextLimits(n_top=4, n_per_stratum=1), 60)
    read = stream_of(stream.codes, TOKENS, np.zeros(int(stream.documents.max()) + 1, bool))
    tables = count(stream.codes, read, found, promoted=np.zeros((D_SAE, 1)), n_coactive=3, memory_bytes=1 << 20)
    pack = windows_of(
        found,
        stream.codes,
        5,
        Peaks(tables.samples.weaker[5], tables.samples.uniform[5], int(tables.samples.available[5])),
    )
    columns = pack_columns(pack, "<u2")
    back = unpack_columns(columns, 2, float(found.maximum[5]))
    for number, w in enumerate(back.windows):
        ids, acts = dense_windows(back)[number]
        context, peak = int(w["context"]), int(w["peak"])
        row = (stream.indices[context] == 5) * stream.acts[context]
        truth = row.sum(axis=1)
        start = [s for s in range(LENGTH) if np.array_equal(stream.ids[context, s : s + len(ids)], ids)
                 and np.allclose(truth[s : s + len(ids)], acts, atol=found.maximum[5] / ACT_LEVELS)]  # fmt: skip
        assert start
        assert acts[peak] == acts.max()
        fired, peak_act = stream.acts[(stream.indices == 5) & (stream.acts > 0)], truth[start[0] + peak]
        assert w["percentile"] == pytest.approx((fired < peak_act).mean())
        available = found.stratum_contexts[5, int(w["stratum"])]
        assert w["inclusion"] == pytest.approx(
            min(1.0, 1 / available)
            if w["group"] == 1
            else min(1.0, 20 / tables.samples.available[5])
            if w["group"] == 2
            else 1.0
        )


def test_windows_end_where_their_document_does():
    """Two documents share a context; no window holds tokens of both, and places count from the document's start."""
    stream = codes(2)
    stream.documents[:] = np.arange(CONTEXTS)[:, None] * 2 + (np.arange(LENGTH) >= 9)
    found = collect(stream, ContextLimits(n_top=4, n_per_stratum=1), 60)
    for feature in range(D_SAE):
        for w in windows_of(found, stream.codes, feature, Peaks(np.zeros(12), np.empty(0, int), 0)).windows:
            length, peak, place = int(w["length"]), int(w["peak"]), int(w["place"])
            second = w["document"] % 2
            assert peak <= place and place - peak + length <= (LENGTH - 9 if second else 9)
            position = place + 9 * second
            row = (stream.indices[w["context"], position] == feature) * stream.acts[w["context"], position]
            assert row.max() > 0
    for window in random_windows(stream.codes, np.ones(stream.ids.shape, bool), 40, 0):
        second = window.document % 2
        start = window.place - window.peak
        assert start >= 0 and start + len(window.token_ids) <= (LENGTH - 9 if second else 9)


def test_empty_feature_packs_and_unpacks():
    empty = np.empty(0, np.int64)
    pack = unpack_columns(pack_columns(Pack(np.empty(0, WINDOW), empty, empty, empty), "<u2"), 2, 0.0)
    assert len(pack.windows) == len(pack.token_ids) == 0


def test_token_tables_equal_counting():
    stream = codes(4)
    found = collect(stream, ContextLimits(), 60)
    is_test = documents_for_testing(np.arange(int(stream.documents.max()) + 1))
    promoted = np.tile(np.array([0, 1]), (D_SAE, 1))
    read = stream_of(stream.codes, TOKENS, is_test)
    tables = count(stream.codes, read, found, promoted=promoted, n_coactive=10, memory_bytes=1 << 20)
    truth = {"current": Counter(), "next": Counter()}
    strong = Counter()
    for c, p, j in zip(*(stream.acts > 0).nonzero(), strict=True):
        f, act = int(stream.indices[c, p, j]), stream.acts[c, p, j]
        if act < np.float32(found.maximum[f] / 3):
            continue
        part = bool(is_test[stream.documents[c, p]])
        strong[f, part] += 1
        truth["current"][f, int(stream.ids[c, p]), part] += 1
        if p + 1 < LENGTH:
            truth["next"][f, int(stream.ids[c, p + 1]), part] += 1
    for kind, rows in (("current", tables.current), ("next", tables.following)):
        got = {(f, t): (e, s) for f, t, e, s in rows.tolist()}
        for (f, t), (explain, test) in got.items():
            assert (explain, test) == (truth[kind][f, t, False], truth[kind][f, t, True])
        assert all((f, t) in got for f, t, part in truth[kind] if not part)
    for f in range(D_SAE):
        assert tables.n_strong_test[f] == strong[f, True]
        assert tables.n_strong[f] == strong[f, True] + strong[f, False]


def test_document_latents_equal_counting():
    stream = codes(5)
    n = int(stream.documents.max()) + 1
    tables = count_documents(stream.codes, D_SAE, 3)
    for document in range(n):
        inside = stream.documents == document
        totals = np.bincount(stream.indices[inside].reshape(-1), stream.acts[inside].reshape(-1), minlength=D_SAE)
        rows = tables.rows[:, 0] == document
        best = sorted(range(D_SAE), key=lambda f: (-totals[f], f))[:3]
        assert tables.rows[rows, 1].tolist() == best
        np.testing.assert_allclose(tables.means[rows], totals[best] / inside.sum(), rtol=1e-5)


def test_random_windows_list_what_fires():
    stream = codes(6)
    drawn = random_windows(stream.codes, (stream.acts > 0).any(2), 20, 0)
    assert len(drawn) == 20
    for window in drawn:
        ids = window.token_ids
        places = [
            (c, s)
            for c in range(CONTEXTS)
            for s in range(LENGTH - len(ids) + 1)
            if np.array_equal(stream.ids[c, s : s + len(ids)], ids) and s + window.peak == window.place
        ]
        sets = [
            set(stream.indices[c, s : s + len(ids)][stream.acts[c, s : s + len(ids)] > 0].tolist()) for c, s in places
        ]
        assert set(window.latents.tolist()) in sets


def test_half_of_the_documents_are_for_testing():
    share = documents_for_testing(np.arange(10_000)).mean()
    assert 0.47 < share < 0.53


assert N_BINS % N_STRATA == 0


def test_the_padding_of_a_row_is_no_activation_of_latent_0():
    """Rows of codes are as wide as the token with most latents; what is left of one is filled with latent 0 at 0."""
    stream = codes(3)
    indices, acts = (np.concatenate([part, np.zeros_like(part)], axis=2) for part in (stream.indices, stream.acts))
    padded = CodeRows(stream.ids, stream.documents, indices, acts).codes
    assert all(np.array_equal(a, b) for a, b in zip(stream.codes, padded, strict=True))


def test_codes_take_the_room_of_what_fires(tmp_path):
    """One token fires 3,989 latents and 999 fire two: the files hold 5,987 latents, not 1,000 times 3,989."""
    files, rng = CodeFiles(tmp_path, 1000, 5000), np.random.default_rng(0)
    acts, indices = np.zeros((1000, 3989), np.float32), np.tile(np.arange(3989), (1000, 1))
    acts[:, :2], acts[500] = 1.5, rng.uniform(0.1, 1, 3989)
    tokens = np.delete(np.arange(1000), 7)  # one was not read
    for part in np.array_split(tokens, 9):
        files.write(part, indices[part], acts[part])
    latents = files.latents()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 6 * latents.acts.size == 6 * (998 * 2 + 3989)
    assert latents.starts[7] == latents.starts[8] and latents.starts[-1] == latents.acts.size
    wide = slice(*latents.starts[500:502])
    assert np.array_equal(latents.acts[wide], acts[500]) and np.array_equal(latents.indices[wide], np.arange(3989))


def test_a_text_without_a_firing_has_codes(tmp_path):
    latents = CodeFiles(tmp_path, 10, 70_000).latents()
    assert latents.acts.size == 0 and not latents.starts.any() and latents.indices.dtype == np.uint32
