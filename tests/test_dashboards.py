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
from feature_store.lookup.search import by_promotion
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


@pytest.fixture(scope="module")
def imported(bucket, tmp_path_factory):
    target = tmp_path_factory.mktemp("in") / "pages"
    done = run_here("import", bucket.parent.parent, "--from", "neuronpedia", target)
    assert done.returncode == 0, done.stderr
    assert "without weights" in done.stdout
    return target


def test_an_imported_bucket_says_of_features_what_the_exported_store_says(imported, store):
    with closing(Store(imported / "store")) as read:
        theirs = queries.features(read, 0, read.n_features)
        ours = {f.row.feature: f for f in queries.features(store, 0, store.n_features) if f.row.n_fired > 0}
        assert [f.row.feature for f in theirs if f.row.n_fired > 0] == list(ours)
        for feature in theirs:
            if feature.row.n_fired == 0:
                assert not feature.promoted and not feature.neighbours and feature.row.density == 0
                continue
            same = ours[feature.row.feature]
            assert feature.row.density == same.row.density and feature.row.label == same.row.label
            assert feature.row.max_act == pytest.approx(same.row.max_act, rel=1e-3)
            assert feature.row.score is None, "where a feature is silent is not published, so no label has a score"
            assert _named(read, feature.promoted) == _named(store, same.promoted)
            assert [n for n, _ in feature.neighbours] == [n for n, _ in same.neighbours if n in ours]
            assert [e.text for e in feature.explanations] == [e.text for e in same.explanations]


def _named(store, tokens):
    return [(store.vocabulary.shown(token), value) for token, value in tokens]


def test_its_contexts_are_the_published_ones(imported, store):
    with closing(Store(imported / "store")) as read:
        feature = next(f.row.feature for f in queries.features(store, 0, store.n_features) if f.row.n_fired > 50)
        ours, theirs = (
            {
                (tuple(s.vocabulary.texts(w.token_ids)), *(round(a / 2e-3) for a in w.acts))
                for w in queries.windows(s, feature)
                if w.group == "top" and w.rank < 5
            }
            for s in (store, read)
        )
    texts = [{tokens for tokens, *_ in windows} for windows in (ours, theirs)]
    assert texts[0] == texts[1] and len(texts[0]) == 5


def test_imported_features_are_found_by_the_tokens_that_their_pages_list(imported):
    with closing(Store(imported / "store")) as read:
        pairs = [(f.row.feature, *pair) for f in queries.features(read, 0, read.n_features) for pair in f.promoted]
        _, token, _ = max(pairs, key=lambda pair: pair[2])
        listing = {feature: value for feature, listed, value in pairs if listed == token and value > 0}
        [text] = read.vocabulary.texts(np.array([token]))
        hits = {hit.feature: hit.why for hit in by_promotion(read, text).hits}
        assert listing and listing.keys() <= hits.keys()
        for feature, value in listing.items():
            assert hits[feature].endswith(f"{value:.1f} by what its page says")


def test_pages_without_weights_are_served_and_encode_nothing(imported):
    from starlette.testclient import TestClient

    import sae
    from sae.errors import ArtefactError
    from server.app import create_app
    from server.catalogue import open_catalogue

    with pytest.raises(ArtefactError, match="no weights"):
        sae.load(imported)
    assert "no weights" in run_here("export", imported, "--to", "saelens", imported.parent / "out").stderr

    with TestClient(create_app(open_catalogue([imported])), base_url="http://localhost") as client:
        [dictionary] = client.get("/api/v1/dictionaries").json()
        at = f"/api/v1/dictionaries/{dictionary['id']}"
        table = client.get(f"{at}/features").json()
        feature = table["items"][0]["feature"]
        assert client.get(f"{at}/features/{feature}").json()["label"]
        assert client.get(f"{at}/features/{feature}/contexts").json()["items"]
        offered = client.get(f"{at}/download").json()
        names = {file["name"] for file in offered}
        assert "features.parquet" in names and not any("weights" in name for name in names)
        assert client.get(f"{at}/download/dictionary.zip").status_code == 200


ROWS = {
    "features": {"index": "0", "frac_nonzero": 0.5, "pos_str": ["a"], "pos_values": [1.0], "modelId": "m"},
    "activations": {"index": "0", "tokens": ["a", "b"], "values": [0.0, 1.0]},
    "explanations": {"index": "0", "description": "letters", "typeName": "by hand"},
}


def written(folder, **changes):
    """A bucket of one feature, some keys of some tables changed."""
    for table, row in ROWS.items():
        path = folder / "m" / "0-s" / table / "batch-0.jsonl.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(json.dumps(row | changes.get(table, {})).encode()))
    return folder


def test_a_bucket_of_one_feature_is_enough(tmp_path):
    done = run_here("import", written(tmp_path / "b"), "--from", "neuronpedia", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    with closing(Store(tmp_path / "one" / "store")) as read:
        [feature] = queries.features(read, 0, 1)
        assert (feature.row.label, feature.row.density, feature.row.max_act) == ("letters", 0.5, 1.0)


@pytest.mark.parametrize(
    ("table", "change", "said"),
    [
        ("features", {"index": "-1"}, "index is '-1'"),
        ("features", {"index": 10**9}, "whole number below"),
        ("features", {"pos_values": []}, "no list of 1 numbers"),
        ("features", {"frac_nonzero": "much"}, "a number is wanted"),
        ("activations", {"values": [0.0]}, "no list of 2 numbers"),
        ("activations", {"values": [1e300, 1.0]}, "a number is wanted"),
        ("activations", {"tokens": "ab"}, "no list of texts"),
        ("activations", {"tokens": [], "values": []}, "a context of 0 tokens"),
        ("activations", {"index": "1"}, "has no page"),
        ("explanations", {"description": {"a": 1}}, "a text is wanted"),
    ],
)
def test_rows_that_cannot_be_are_named_and_nothing_is_written(tmp_path, table, change, said):
    done = run_here("import", written(tmp_path / "b", **{table: change}), "--from", "neuronpedia", tmp_path / "one")
    assert done.returncode == 66 and said in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(
    "content",  # mtime: else names of tests would be those of the second
    [b"\x1f\x8b\x08", b"no gzip", gzip.compress(b"{" * 100, mtime=0), gzip.compress(b"[1]", mtime=0)],
)
def test_damaged_files_are_named(tmp_path, content):
    written(tmp_path / "b").joinpath("m/0-s/activations/batch-0.jsonl.gz").write_bytes(content)
    done = run_here("import", tmp_path / "b", "--from", "neuronpedia", tmp_path / "one")
    assert done.returncode == 66 and "batch-0.jsonl.gz" in done.stderr


def test_a_small_file_that_unpacks_to_a_large_one_is_refused(tmp_path):
    bomb = gzip.compress(b" " * (100 << 20))
    written(tmp_path / "b").joinpath("m/0-s/activations/batch-0.jsonl.gz").write_bytes(bomb)
    done = run_here("import", tmp_path / "b", "--from", "neuronpedia", tmp_path / "one")
    assert done.returncode == 66 and "longer than" in done.stderr


def test_layouts_that_are_only_written_say_so(tmp_path):
    tmp_path.joinpath("there").mkdir()
    done = run_here("import", tmp_path / "there", "--from", "saedashboard", tmp_path / "one")
    assert done.returncode == 2 and "does not read it" in done.stderr
