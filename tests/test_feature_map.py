"""The map of features: what is alike is near, the same seed gives the same places, every live feature has one."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from scipy.sparse import block_diag, csr_matrix

from feature_store import queries
from feature_store.store import Store
from sae.interpret.feature_map import layout, places_of


def blocks(n_groups, size, rng):
    """Features that are alike within their group, and hardly between groups."""
    inside = [np.triu(rng.random((size, size)) * (rng.random((size, size)) < 0.4), 1) for _ in range(n_groups)]
    edges = block_diag(inside).toarray() + 0.02 * (rng.random((n_groups * size,) * 2) < 0.002)
    return csr_matrix(edges + edges.T), np.repeat(np.arange(n_groups), size)


def test_what_is_alike_is_near():
    rng = np.random.default_rng(0)
    edges, groups = blocks(8, 40, rng)
    start = rng.normal(0, 5, (len(groups), 2))
    places = layout(edges, start, 0)
    distances = ((places[:, None] - places[None]) ** 2).sum(2) + 1e9 * np.eye(len(groups))
    nearest = np.argsort(distances, 1)[:, :5]
    assert (groups[nearest] == groups[:, None]).mean() > 0.95
    assert np.array_equal(layout(edges, start, 0), places) and not np.array_equal(layout(edges, start, 1), places)


def test_features_without_affinity_stay_where_they_began():
    start = np.arange(6.0).reshape(3, 2)
    assert np.array_equal(layout(csr_matrix((3, 3)), start, 0), start)


def test_every_live_feature_of_a_run_has_a_place(finished):
    with closing(Store(finished / "dictionaries" / "first" / "store")) as store:
        places = store.columns.places
        alive = np.flatnonzero(store.columns.numbers["n_fired"] > 0)
        assert np.flatnonzero(~np.isnan(places[0])).tolist() == alive.tolist()
        assert (places[:, alive].min(1) == 0).all() and places[:, alive].max(1) == pytest.approx(1)
        concepts, seed = queries.concepts(store), store.meta["seed"]
        again = places_of(store, alive.tolist(), concepts, seed)
        assert np.array_equal(np.stack([again.x, again.y]), places[:, alive])


def test_a_dictionary_without_live_features_has_an_empty_map(finished):
    with closing(Store(finished / "dictionaries" / "first" / "store")) as store:
        assert len(places_of(store, [], [], 0).feature) == 0
