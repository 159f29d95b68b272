"""The ring buffer drops nothing, doubles nothing, mixes documents, and draws the same batches again."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.model.hookpoints import Channel, HookPoint
from sae.stream.shuffle import SPREAD, RingBuffer, ShuffleConfig, ShufflePlan, segment_contexts

HOOK = Channel(HookPoint("resid_post", 0))


def emit(sizes, reuse, seed=0, batch=16):
    """Row numbers in the order in which they come out; rows carry their own number."""
    plan = ShufflePlan(len(sizes), reuse, seed)
    ring = RingBuffer({HOOK: 1}, plan.slots, max(sizes), torch.float32, device=torch.device("cpu"))
    starts = [sum(sizes[:g]) for g in range(len(sizes))]
    out = []
    for cycle in range(plan.n_cycles):
        for g in plan.segments_in(cycle):
            if g not in ring.counts:
                ring.put(g, {HOOK: torch.arange(starts[g], starts[g] + sizes[g]).float()[:, None]}, [sizes[g]])
        for part, _ in ring.batches(ring.cycle_order(plan, cycle), batch, 0):
            assert len(part[HOOK]) <= batch
            out.append(part[HOOK][:, 0].long())
    return torch.cat(out)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(1, 4), st.integers(0, 1000))
def test_every_row_comes_out_exactly_reuse_times(sizes, reuse, seed):
    assert Counter(emit(sizes, reuse, seed).tolist()) == {row: reuse for row in range(sum(sizes))}


def test_same_seed_same_order_other_seed_other_order():
    a, b, c = emit([50] * 6, 2, 1), emit([50] * 6, 2, 1), emit([50] * 6, 2, 2)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_skipping_batches_is_the_tail_of_the_cycle():
    plan = ShufflePlan(1, 1, 0)
    ring = RingBuffer({HOOK: 1}, plan.slots, 100, torch.float32, device=torch.device("cpu"))
    ring.put(0, {HOOK: torch.arange(100).float()[:, None]}, [100])
    order = ring.cycle_order(plan, 0)
    whole = [b[HOOK] for b, _ in ring.batches(order, 8, 0)]
    rest = [b[HOOK] for b, _ in ring.batches(order, 8, 3)]
    assert all(torch.equal(x, y) for x, y in zip(whole[3:], rest, strict=True))


def test_documents_are_mixed_across_refills():
    """Inside a cycle the document ids have no autocorrelation, and each cycle mixes several segments."""
    rows_per_document, size, segments = 20, 400, 8
    documents = (emit([size] * segments, 1) // rows_per_document).double()
    lags = []
    for cycle in range(1, segments):
        part = documents[size // SPREAD + (cycle - 1) * size :][:size]
        assert len(part.div(size // rows_per_document).floor().unique()) == SPREAD
        centred = part - part.mean()
        lags.append(float((centred[1:] * centred[:-1]).mean() / centred.square().mean()))
    assert max(map(abs, lags)) < 0.2 and abs(sum(lags) / len(lags)) < 0.06
    repeats = float((documents[1:] == documents[:-1]).double().mean())
    assert repeats < 2 * rows_per_document / (SPREAD * size)


def test_every_batch_of_a_full_ring_draws_from_every_segment():
    plan_cycle, sizes = 3, [300] * 8
    plan = ShufflePlan(8, 2, 0)
    ring = RingBuffer({HOOK: 1}, plan.slots, 300, torch.float32, device=torch.device("cpu"))
    for g in range(4):
        ring.put(g, {HOOK: torch.full((sizes[g], 1), float(g))}, [sizes[g]])
    for part, _ in ring.batches(ring.cycle_order(plan, plan_cycle), 128, 0):
        assert set(part[HOOK][:, 0].tolist()) == {0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize(("reuse", "budget"), [(1, 10_000), (3, 50_000), (2, 10**9)])
def test_the_ring_fits_its_budget(reuse, budget):
    for n_passes, kept in ((13, 12), (6, 6), (5, 4), (3, 3), (1, 1)):  # what 2 or 4 processes can share
        ring = ShuffleConfig(buffer_bytes=SPREAD * 640 * 10 * n_passes)
        assert segment_contexts(ring, 640, 10_000, 10) == 10 * kept
    size = segment_contexts(ShuffleConfig(buffer_bytes=budget, reuse=reuse), 640, 1000)
    assert size >= 1
    assert size == 1 or size * 640 * reuse * SPREAD <= budget
