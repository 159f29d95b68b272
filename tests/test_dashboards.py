"""What a store says of features goes into the files of Neuronpedia and SAEDashboard, which say the same."""

from __future__ import annotations

import gzip
import itertools
import json
import os
from contextlib import closing

import numpy as np
import pytest
from fixtures import run_here

from feature_store import queries
from feature_store.store import Store

# Columns of Neuronpedia's tables; its import refuses a row with any other.
NEURON = {
    "modelId", "layer", "index", "sourceSetName", "creatorId", "createdAt", "maxActApprox", "hasVector", "vector",
    "vectorLabel", "vectorDefaultSteerStrength", "hookName", "topkCosSimIndices", "topkCosSimValues", "neg_str",
    "neg_values", "pos_str", "pos_values", "frac_nonzero", "freq_hist_data_bar_heights", "freq_hist_data_bar_values",
}  # fmt: skip
ACTIVATION = {
    "id", "tokens", "index", "layer", "modelId", "maxValue", "maxValueTokenIndex", "minValue", "values", "creatorId",
    "dataSource", "dataIndex", "createdAt", "binMin", "binMax", "binContains", "qualifyingTokenIndex",
}  # fmt: skip
EXPLANATION = {
    "id", "modelId", "layer", "index", "description", "authorId", "typeName", "explanationModelName", "notes", "createdAt",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(finished):
    return finished / "dictionaries" / "first"


@pytest.fixture(scope="module")
def store(folder):
    with closing(Store(folder / "store")) as opened:
        yield opened


@pytest.fixture(scope="module")
def bucket(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("out") / "bucket"
    done = run_here("export", folder, "--to", "neuronpedia", target)
    assert done.returncode == 0, done.stderr
    [source] = target.glob("*/*")
    return source


def lines(bucket, table):
    files = sorted(bucket.glob(f"{table}/batch-*.jsonl.gz"), key=lambda path: int(path.name[6:].partition(".")[0]))
    return [json.loads(line) for path in files for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_a_bucket_holds_the_features_that_fire(bucket, store):
    firing = [f.row for f in queries.features(store, 0, store.n_features) if f.row.n_fired > 0]
    rows = lines(bucket, "features")
    assert [int(row["index"]) for row in rows] == [row.feature for row in firing]
    assert [row["frac_nonzero"] for row in rows] == [row.density for row in firing]
    assert all(row.keys() <= NEURON for row in rows)
    source, model = (json.loads((bucket / f"{name}.jsonl").read_text()) for name in ("source", "model"))
    assert {(row["layer"], row["modelId"]) for row in rows} == {(source["id"], model["id"])}
    assert (
        bucket.name == source["id"]
        and json.loads((bucket / "sourceset.jsonl").read_text())["name"] == source["setName"]
    )


def test_its_activations_are_the_stored_contexts(bucket, store):
    rows = lines(bucket, "activations")
    assert all(row.keys() == ACTIVATION for row in rows) and len({row["id"] for row in rows}) == len(rows)
    feature = int(rows[0]["index"])
    mine = [row for row in rows if row["index"] == str(feature)]
    stored = queries.windows(store, feature)
    assert len(mine) == len(stored)
    largest = max(w.acts[w.peak] for w in stored)
    for row, window in zip(mine, stored, strict=True):
        np.testing.assert_allclose(row["values"], window.acts, rtol=1e-3)
        assert row["qualifyingTokenIndex"] == window.peak and row["tokens"] == store.vocabulary.texts(window.token_ids)
        is_top = window.group == "top"
        assert (row["binMin"] == -1) == is_top and 0 <= abs(row["binContains"]) <= 1
        assert row["binMin"] <= window.acts[window.peak] * 1.001 and (is_top or row["binMax"] < 2 * largest)


def test_strata_share_all_firings(store):
    from feature_store.lookup.bodies import Surroundings, feature_body
    from feature_store.lookup.neuronpedia import _bins_of

    [feature] = queries.features(store, 3, 4)
    bins = _bins_of(feature_body(Surroundings(store, 3), feature))
    assert sum(share for *_, share in bins) == pytest.approx(1)
    assert all(low < high for low, high, _ in bins) and all(a[1] == b[0] for a, b in itertools.pairwise(bins))


def test_its_explanations_are_the_labels_and_what_else_was_tried(bucket, store):
    rows = lines(bucket, "explanations")
    texts = {f.row.feature: [e.text for e in f.explanations] for f in queries.features(store, 0, store.n_features)}
    assert all(row.keys() == EXPLANATION and row["typeName"] is None for row in rows)
    found: dict[int, list[str]] = {}
    for row in rows:
        found.setdefault(int(row["index"]), []).append(row["description"])
    assert found == {feature: listed for feature, listed in texts.items() if listed}


def test_the_same_store_gives_the_same_bytes_and_contexts_may_stay_here(bucket, folder, tmp_path):
    done = run_here("export", folder, "--to", "neuronpedia", "--no-contexts", tmp_path / "out")
    assert done.returncode == 0
    [source] = (tmp_path / "out").glob("*/*")
    assert not (source / "activations").exists()
    for path in source.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (bucket / path.relative_to(source)).read_bytes()
    again = run_here("export", folder, "--to", "neuronpedia", tmp_path / "out")
    assert again.returncode == 2 and "exists already" in again.stderr


def test_batches_of_saedashboard_say_what_neuronpedia_s_say(bucket, folder, tmp_path):
    assert run_here("export", folder, "--to", "saedashboard", tmp_path / "out").returncode == 0
    batch = json.loads((tmp_path / "out" / "batch-0.json").read_text())
    rows = {row["index"]: row for row in lines(bucket, "features")}
    for feature in batch["features"]:
        row = rows[str(feature["feature_index"])]
        assert all(feature[name] == row[name] for name in feature.keys() & row.keys() - {"index"})
    texts = [a["tokens"] for feature in batch["features"] for a in feature["activations"]]
    assert texts == [row["tokens"] for row in lines(bucket, "activations")][: len(texts)]


@pytest.mark.skipif("SAEDEX_PEERS" not in os.environ, reason="SAEDashboard is installed beside the peers (make peers)")
@pytest.mark.filterwarnings("ignore")
def test_saedashboard_reads_its_batches(folder, tmp_path):
    from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch

    assert run_here("export", folder, "--to", "saedashboard", tmp_path / "out").returncode == 0
    for path in (tmp_path / "out").iterdir():
        written = json.loads(path.read_text())
        assert NeuronpediaDashboardBatch(**written).to_dict() == written


def test_without_a_store_nothing_is_written(folder, tmp_path):
    done = run_here("export", tmp_path, "--to", "neuronpedia", tmp_path / "out")
    assert done.returncode == 66 and not (tmp_path / "out").exists() and "no card.json there" in done.stderr
