"""Edges between two dictionaries: the first order of what really changes, the order of layers, and the command."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures import copy_run, run_here

from feature_store.results.findings import Finding
from sae.apply.feeding import edges
from sae.architectures import build
from sae.architectures.topk import TopKConfig
from sae.errors import ConfigError
from sae.model import language_model
from sae.model.hookpoints import Channel, HookPoint
from sae.model.language_model import FolderModel
from sae.stream.harvest import HarvestConfig, Harvester

HOOKS = HookPoint("resid_post", 0), HookPoint("resid_post", 1)


@pytest.fixture(scope="module")
def harvester(tiny_model):
    lm = language_model.load(FolderModel(source="folder", path=tiny_model), torch.device("cpu"))
    return Harvester(lm, tuple(map(Channel, HOOKS)), HarvestConfig(), "joined")


def dictionary(hook, seed, **settings):
    sae = build(TopKConfig(name="x", hook=hook, d_sae=64, k=6, **settings), 32).eval()
    sae.initialise(torch.Generator().manual_seed(seed), torch.zeros(32))
    return sae


@pytest.mark.parametrize("settings", [{}, {"token_norm": True}])
def test_an_edge_is_what_a_little_more_of_the_source_does_to_the_target(harvester, settings):
    earlier, later = dictionary(HOOKS[0], 1, **settings), dictionary(HOOKS[1], 2)
    ids = np.random.default_rng(0).integers(10, 90, (1, 12))
    harvested = harvester.harvest(ids, np.zeros_like(ids)).x
    h, after = (harvested[Channel(hook)][0, 1:].float() for hook in HOOKS)
    with torch.no_grad():
        code, fired = earlier.encode(h), later.encode(after)
        target = int(fired.top_indices[-1, 0])
        fires = ((fired.top_indices == target) & (fired.top_acts > 0)).any(1)
    found = edges(harvester, earlier, later, ids, targets=[target], most=64)
    position, place = 3, 2
    source = int(code.top_indices[position, place])
    scale = 1.0 if code.deviation is None else code.deviation[position]

    def summed(step):
        change = step * code.top_acts[position, place] * earlier.W_dec[source] * scale

        def add(x):
            out = x.clone()
            out[:, position + 1] += change
            return out

        handle = harvester.places[HOOKS[0]].watch(add)
        try:
            x = harvester.harvest(ids, np.zeros_like(ids)).x[Channel(HOOKS[1])][0, 1:].float()
        finally:
            handle.remove()
        with torch.no_grad():
            return float((later.centre(x[fires]) @ later.W_enc[:, target]).double().sum())

    alone = sum(int(source in row) for row in code.top_indices.tolist()) == 1
    slope = abs(summed(1e-2) - summed(-1e-2)) / 2e-2 / 11
    weight = dict(zip(found.sources[0].tolist(), found.weights[0].tolist(), strict=True))[source]
    assert weight == pytest.approx(slope, rel=0.05, abs=1e-6) if alone else weight >= slope * 0.95
    assert found.shares[0].sum() == pytest.approx(1, abs=1e-5)


def test_a_target_that_never_fires_has_no_edges_and_layers_have_an_order(harvester):
    earlier, later = dictionary(HOOKS[0], 1), dictionary(HOOKS[1], 2)
    with torch.no_grad():
        later.b_enc[5] = -1e6
    ids = np.random.default_rng(0).integers(10, 90, (6, 12))
    found = edges(harvester, earlier, later, ids, targets=[5, 6])
    assert found.weights[0].max() == 0 and found.sources.shape == (2, 10)
    with pytest.raises(ConfigError, match=r"resid_post\.1 is not before resid_post\.0"):
        edges(harvester, later, earlier, ids, targets=[5])


def test_the_command_writes_a_finding_into_both(finished, tmp_path):
    run = copy_run(finished, tmp_path / "tiny")
    first, second = (run / "dictionaries" / name for name in ("first", "second"))
    done = run_here("feeds", first, second, "--features", "12", "--contexts", "6")
    assert done.returncode == 0, done.stderr
    feeds, fed_by = Finding.read(first / "findings/feeds-second"), Finding.read(second / "findings/fed-by-first")
    assert fed_by.tables[0].rows and {row[0] for row in fed_by.tables[0].rows} <= set(range(64))
    pairs = {(row[0], row[1]) for row in feeds.tables[0].rows}
    assert pairs == {(row[1], row[0]) for row in fed_by.tables[0].rows}
    wrong = run_here("feeds", second, first)
    assert wrong.returncode != 0 and "is not before" in wrong.stderr and "Traceback" not in wrong.stderr
