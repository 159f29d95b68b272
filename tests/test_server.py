"""The API of a real server process: shapes, errors, downloads, speed of start, and the committed OpenAPI document."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
import torch
from fixtures import copy_run, no_model, serving

from sae.errors import ArtefactError
from sae.foundation.tensor_files import Piece, save_tensors
from sae.publish import dictionary
from sae.publish.card import joint_sha256
from sae.training.trainer import LATENT_AXIS
from server.app import create_app
from server.catalogue import Catalogue
from server.tables import csv_lines

ROOT = Path(__file__).parent.parent
D = "/api/v1/dictionaries/tiny.first"


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server, timeout=30) as client:
        yield client


def test_dictionaries_are_listed(client):
    found = client.get("/api/v1/dictionaries").json()
    assert {d["id"] for d in found} == {"tiny.first", "tiny.second"}
    first = next(d for d in found if d["id"] == "tiny.first")
    assert first["features"] == 64 and 0 < first["labelled"] <= first["alive"] <= 64 and first["fvu"] < 1


def test_features_filter_sort_and_page(client):
    page = client.get(f"{D}/features", params={"sort": "density", "order": "desc", "limit": 5}).json()
    densities = [item["density"] for item in page["items"]]
    assert page["total"] == 64 and densities == sorted(densities, reverse=True)
    bound = densities[2]
    few = client.get(f"{D}/features", params={"min_density": bound}).json()
    assert few["total"] == 3
    seen = []
    for offset in range(0, 64, 10):
        seen += [
            i["feature"] for i in client.get(f"{D}/features", params={"limit": 10, "offset": offset}).json()["items"]
        ]
    assert seen == list(range(64))
    labelled = next(i for i in client.get(f"{D}/features", params={"limit": 200}).json()["items"] if i["label"])
    word = labelled["label"].split()[-1].strip("\u201c\u201d,")
    hits = client.get(f"{D}/features", params={"q": word}).json()
    assert labelled["feature"] in [i["feature"] for i in hits["items"]]


def test_features_by_ids_with_chosen_fields(client):
    page = client.get(f"{D}/features", params={"ids": "3,17,42,9999", "fields": "label,feature"}).json()
    assert page["total"] == 3 and [item["feature"] for item in page["items"]] == [3, 17, 42]
    assert all(list(item) == ["label", "feature"] for item in page["items"])
    for wrong in (
        {"ids": "3,x"},
        {"ids": ""},
        {"ids": "-1"},
        {"ids": ",".join("1" * 201)},
        {"fields": "label,nothing"},
    ):
        assert client.get(f"{D}/features", params=wrong).status_code == 422, wrong
    refused = client.get(f"{D}/features", params={"explainer": "nonsense"})
    assert refused.status_code == 422 and "labels come from token" in refused.json()["error"]["message"]


def test_a_whole_filter_is_a_file(client):
    wanted = {"sort": "density", "order": "desc", "max_density": 0.2, "limit": 1}
    items = client.get(f"{D}/features", params=wanted | {"limit": 200}).json()["items"]
    expected = [{key: value for key, value in item.items() if key != "snippet"} for item in items]
    lines = client.get(f"{D}/features", params=wanted | {"format": "ndjson"})
    assert lines.headers["content-type"] == "application/x-ndjson" and len(expected) > 10
    assert [json.loads(line) for line in lines.text.splitlines()] == expected
    table = client.get(f"{D}/features", params=wanted | {"format": "csv", "fields": "feature,label,n_fired"})
    assert (
        table.headers["content-type"].startswith("text/csv") and "features.csv" in table.headers["content-disposition"]
    )
    rows = list(csv.DictReader(io.StringIO(table.text, newline="")))
    assert [row["feature"] for row in rows] == [str(item["feature"]) for item in expected]
    assert [row["label"] for row in rows] == [item["label"] or "" for item in expected]


def test_no_cell_of_a_table_is_a_formula():
    texts = ["=1+1", "+1", "-1", "@a", "\t=1", "a=1", "'quoted'", 'a "b", c\n=d', ""]
    written = b"".join(csv_lines([[{"label": text, "n": -1.5}] for text in texts])).decode()
    rows = list(csv.DictReader(io.StringIO(written, newline="")))
    assert [row["label"] for row in rows] == ["'=1+1", "'+1", "'-1", "'@a", "'\t=1", *texts[5:]]
    assert {row["n"] for row in rows} == {"-1.5"}


def test_a_score_comes_with_its_interval_and_what_it_is_of(client):
    page = client.get(f"{D}/features", params={"sort": "low", "order": "desc", "limit": 200, "firing": "alive"}).json()
    lows = [item["low"] for item in page["items"] if item["low"] is not None]
    assert len(lows) > 10 and lows == sorted(lows, reverse=True) and 0 < page["floor"] < 1
    for item in page["items"]:
        assert 0 < item["strong_share"] <= 1
        feature = client.get(f"{D}/features/{item['feature']}").json()
        assert {key: feature[key] for key in item if key != "snippet"} | {"snippet": None} == item
        scores = next((e["scores"] for e in feature["explanations"] if e["chosen"]), [])
        rule = {score["metric"]: score for score in scores if score["scorer"] == "rule"}
        if rule:
            assert item["f2"] == rule["f2"]["value"]
            said = {key: rule["balanced_accuracy"][key] for key in ("low", "high", "n_pos")}
            assert said == {key: item[key] for key in said}


def test_strata_fall_and_do_not_repeat_the_top(client):
    for number in range(0, 64, 7):
        items = client.get(f"{D}/features/{number}/contexts").json()["items"]
        text = [(item["document"], *item["token_ids"]) for item in items]
        top = {t for t, item in zip(text, items, strict=True) if item["group"] == "top"}
        strata = [(t, item) for t, item in zip(text, items, strict=True) if item["group"] == "stratum"]
        assert not top & {t for t, _ in strata}
        peaks = [(item["stratum"], item["acts"][item["places"].index(item["peak"])]) for _, item in strata]
        assert peaks == sorted(peaks, reverse=True)


def test_no_folder_of_this_machine_is_told(client, finished):
    """Neither the card nor anything else that is served names where text, model or runs lie."""
    here = str(finished).split("finished")[0]
    files = [f["name"] for f in client.get(f"{D}/download").json() if f["name"].endswith((".json", ".md", ".jsonl"))]
    paths = [D, f"{D}/features/3", f"{D}/features/3/contexts", f"{D}/documents/0", "/api/v1/damage"]
    for path in (*paths, *(f"{D}/download/{name}" for name in files)):
        assert here not in client.get(path).text, path
    assert client.get(D).json()["card"]["corpus"]["sources"][0]["data_files"] == ["documents.jsonl"]


def test_a_feature_page_has_everything(client):
    number = client.get(f"{D}/features", params={"sort": "density", "order": "desc"}).json()["items"][0]["feature"]
    feature = client.get(f"{D}/features/{number}").json()
    assert sum(feature["histogram"]) == feature["n_fired"]
    assert len(feature["promoted"]) == len(feature["suppressed"]) == 10
    assert feature["promoted"][0]["logit"] > 0 > feature["suppressed"][0]["logit"]
    assert len(feature["neighbours"]) == 10 and feature["neighbours"][0]["feature"] != number
    assert sum(e["chosen"] for e in feature["explanations"]) == 1
    assert any(s["value"] is not None for e in feature["explanations"] for s in e["scores"])
    for explanation in feature["explanations"]:
        rule = next(s for s in explanation["scores"] if s["metric"] == "balanced_accuracy")
        assert rule["chance"] == 0.5 and rule["n_failed"] == 0 and rule["judge"] is None
        assert rule["value"] is None or rule["low"] <= rule["value"] <= rule["high"]
    assert {s["scorer"] for s in feature["scores"]} >= {"token_lookup"}
    contexts = client.get(f"{D}/features/{number}/contexts").json()
    assert {c["group"] for c in contexts["items"]} == {"top", "stratum"}
    for context in contexts["items"]:
        assert context["acts"][context["places"].index(context["peak"])] == max(context["acts"])
        assert max(context["acts"]) <= contexts["max_act"] * 1.001
        assert len(context["token_ids"]) == len(context["texts"]) > max(context["places"])
        assert contexts["documents"][str(context["document"])]


def test_search_by_label_token_and_output(client):
    rows = [i for i in client.get(f"{D}/features", params={"limit": 200}).json()["items"] if i["explainer"] == "token"]
    word = rows[0]["label"].split("\u201c")[1].split("\u201d")[0]
    assert rows[0]["feature"] in [i["feature"] for i in client.get(f"{D}/search", params={"q": word}).json()["items"]]
    current = client.get(f"{D}/search", params={"q": word, "kind": "current"}).json()["items"]
    assert rows[0]["feature"] in [i["feature"] for i in current] and all(i["times"] > 0 for i in current)
    for row in rows:  # a token that is no more than white space cannot be searched for
        number = row["feature"]
        promoted = client.get(f"{D}/features/{number}").json()["promoted"]
        text = next((t["text"] for t in promoted if t["text"].strip()), None)
        if text is not None:
            break
    assert text is not None, "no feature promotes a token that can be searched for"
    found = client.get(f"{D}/search", params={"q": text, "kind": "promoted", "limit": 200}).json()["items"]
    assert number in [i["feature"] for i in found]
    assert client.get(f"{D}/search", params={"q": "zzzz", "kind": "next"}).json()["items"] == []


def test_documents_list_their_features(client):
    found = client.get(f"{D}/documents/0").json()
    assert found["name"] and len(found["features"]) > 5


WRONG = [
    (f"{D}/features/64", 404, "features 0..63"),
    (f"{D}/features/99999999999999999999", 404, "features 0..63"),
    (f"{D}/features/-1", 404, "features 0..63"),
    (f"{D}/features/x", 422, "valid integer"),
    (f"{D}/features?limit=201", 422, "less than or equal to 200"),
    (f"{D}/features?sort=evil", 422, "up to 3 of feature, label"),
    (f"{D}/features?lmit=2", 422, "unknown parameter; known here"),
    (f"{D}/features?min_density=nan", 422, ""),
    (f"{D}/search", 422, "q"),
    (f"{D}/search?q=" + "x" * 1001, 422, "at most 1000"),
    ("/api/v1/dictionaries/tiny.frist/features", 404, "did you mean tiny.first"),
    (f"{D}/documents/999999", 404, "no document"),
    (f"{D}/download/..%2f..%2fconfig.yaml", 404, ""),
    (f"{D}/download/.%2e/card.json", 404, ""),
    (f"{D}/download/store", 404, "no such file"),
    ("/api/v2/x", 404, "no such route"),
]


@pytest.mark.parametrize(("path", "status", "message"), WRONG, ids=[w[0][-30:] for w in WRONG])
def test_every_error_has_one_shape(client, path, status, message):
    """{"error": {"code": str, "message": str}}, whatever went wrong."""
    response = client.get(path)
    assert response.status_code == status
    assert set(response.json()) == {"error"} and set(response.json()["error"]) == {"code", "message"}
    assert message in response.json()["error"]["message"]


def test_writing_is_not_possible(client):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        response = client.request(method, f"{D}/features")
        assert response.status_code == 405 and "error" in response.json()


def test_downloads_carry_their_hash_and_ranges(client, finished):
    files = client.get(f"{D}/download").json()
    assert {"card.json", "weights.safetensors", "features.parquet", "contexts.parquet", "dictionary.zip"} <= {
        f["name"] for f in files
    }
    for file in files:
        response = client.get("/" + file["url"])
        assert len(response.content) == file["size_bytes"] == int(response.headers["content-length"])
        assert file["sha256"] == response.headers.get("x-sha256")
        assert file["sha256"] in (None, hashlib.sha256(response.content).hexdigest())
    assert [file["name"] for file in files if file["sha256"] is None] == ["dictionary.zip"]
    part = client.get(f"{D}/download/weights.safetensors", headers={"range": "bytes=8-15"})
    whole = (finished / "dictionaries" / "first" / "weights.safetensors").read_bytes()
    assert part.status_code == 206 and part.content == whole[8:16]
    bundle = zipfile.ZipFile(io.BytesIO(client.get(f"{D}/download/dictionary.zip").content))
    assert {"first/card.json", "first/weights.safetensors", "first/store/current.json"} <= set(bundle.namelist())
    assert bundle.testzip() is None
    for name in bundle.namelist():
        published = (finished / "dictionaries" / name).read_bytes()
        if name == "first/store/current.json":  # pages follow from the databases and stay at home
            databases = {kind: entry for kind, entry in json.loads(published).items() if not kind.endswith("pages")}
            assert json.loads(bundle.read(name)) == databases
        else:
            assert bundle.read(name) == published, name


def test_a_dictionary_loads_from_its_address(server, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("SAEDEX_CACHE", str(tmp_path))
    remote = dictionary.load(f"{server}{D}")
    local = dictionary.load(str(finished / "dictionaries" / "first"))
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(remote(x), local(x))
    from sae.errors import UnavailableError

    with pytest.raises(UnavailableError, match="Is the server running"):
        dictionary.load(f"{server}/api/v1/dictionaries/absent")


def test_unchanged_features_are_not_sent_again(client):
    first = client.get(f"{D}/features/3")
    again = client.get(f"{D}/features/3", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304 and again.content == b""


def test_pages_and_headers(client):
    for path in ("/", "/any/where"):
        response = client.get(path)
        assert response.status_code == 200 and "<div id=" in response.text
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"


def test_a_new_generation_is_served_without_a_restart(finished, tmp_path):

    from fastapi.testclient import TestClient

    from sae.interpret.interpret import InterpretConfig, interpret
    from server.catalogue import open_catalogue

    run = tmp_path / "run"
    copy_run(finished, run)
    app = create_app(open_catalogue([run]))
    with TestClient(app, base_url="http://localhost") as client:
        before = client.get(f"{D}/features/3").headers["etag"]
        contexts = next((run / "dictionaries" / "first" / "store").glob("contexts-*")).read_bytes()
        interpret(run / "dictionaries" / "first", InterpretConfig(explainers=("output",)), no_model)
        found = client.get(f"{D}/features/3")
        assert found.headers["etag"] != before
        assert {e["explainer"] for e in found.json()["explanations"]} == {"output"}
        assert next((run / "dictionaries" / "first" / "store").glob("contexts-*")).read_bytes() == contexts


def test_unfinished_dictionaries_do_not_stop_the_others(finished, tmp_path):
    import shutil

    from server.catalogue import CatalogueError, open_catalogue

    run = tmp_path / "run"
    copy_run(finished, run)
    (run / "dictionaries" / "second" / "store" / "current.json").unlink()
    shutil.copytree(run / "dictionaries" / "second", run / "dictionaries" / ".second.writing")
    entries = open_catalogue([run])
    assert set(entries) == {"tiny.first"}
    entries["tiny.first"].close()
    with pytest.raises(CatalogueError, match="no published generation"):
        open_catalogue([run / "dictionaries" / "second"])


def test_serving_imports_neither_torch_nor_the_training_side():
    code = "import sys, sae.cli, server.run; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'datasets', 'numba', 'sae.train')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_committed_openapi_document_is_current():
    committed = json.loads((ROOT / "server" / "ui" / "openapi.json").read_text())
    assert committed == create_app(Catalogue()).openapi(), "run `make docs`"


def test_weights_in_shards_are_on_offer_and_load_from_the_address(finished, tmp_path, monkeypatch):
    copy_run(finished, tmp_path / "run")
    folder = tmp_path / "run" / "dictionaries" / "first"
    whole = dictionary.load(folder).state_dict()
    files = {}
    for number, (first, last) in enumerate(((0, 40), (40, 64))):
        name = f"weights-{number:05d}-of-00002.safetensors"
        cut = {
            key: Piece(value.narrow(LATENT_AXIS[key], first, last - first), LATENT_AXIS[key], first)
            for key, value in whole.items()
            if key in LATENT_AXIS
        }
        rest = {} if number else {key: value for key, value in whole.items() if key not in LATENT_AXIS}
        files[name] = save_tensors(folder / name, cut | rest)
    (folder / "weights.safetensors").unlink()
    card = json.loads((folder / "card.json").read_text())
    del card["card_sha256"]
    card |= {"weights_files": files, "weights_sha256": joint_sha256(files)}
    (folder / "card.json").write_text(json.dumps(card))
    monkeypatch.setenv("SAEDEX_CACHE", str(tmp_path / "cache"))
    with serving(tmp_path / "run") as address:
        at = f"{address}/api/v1/dictionaries/tiny.first"
        on_offer = {f["name"] for f in httpx.get(f"{at}/download").json()}
        assert set(files) <= on_offer and "weights.safetensors" not in on_offer
        for key, value in dictionary.load(at).state_dict().items():
            assert torch.equal(value, whole[key]), key
        card["weights_files"] = {"../outside": "0" * 64}
        (folder / "card.json").write_text(json.dumps(card))
        shutil.rmtree(tmp_path / "cache")
        with pytest.raises(ArtefactError, match="no weights"):
            dictionary.load(at)
