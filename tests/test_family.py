"""Every architecture in the folder, from one configuration: trained on one harvest, evaluated, indexed, published."""

from __future__ import annotations

import json

import pytest
import torch
from bits import SAES
from fixtures import run_here, write_config

from sae.architectures import ARCHITECTURES
from sae.publish import dictionary

SETTINGS = {
    "hook": "resid_post.1", "d_sae": 64, "k": 4, "k_aux": 16, "dead_after_tokens": 3000, "target_l0": 4.0,
    "sparsity_warmup_tokens": 1000, "threshold_tokens": 2000, "target": "mlp_out.1", "more_hooks": ["resid_post.2"],
}  # fmt: skip
HOOKS = {"transcoder": "mlp_in.1"}


def entry(name):
    fields = ARCHITECTURES[name].config_class.model_fields
    more = ("target", "more_hooks") if name == "jumprelu" else ()  # with one of them it would be another kind
    known = {key: value for key, value in SETTINGS.items() if key in fields and key not in more}
    return {"name": name.replace("_", "-"), "architecture": name, **known, "hook": HOOKS.get(name, SETTINGS["hook"])}


@pytest.fixture(scope="module")
def family(every_architecture):
    """Run folder with a dictionary of every architecture, and one of the heads of a layer."""
    missing = set(ARCHITECTURES) - {sae["architecture"] for sae in SAES}
    assert not missing, f"tests/bits.py: add an entry of {', '.join(missing)} to SAES"
    return every_architecture


def test_other_settings_of_architectures_train(tmp_path, tree):
    jumprelu = entry("jumprelu")
    saes = [
        {**entry("gradient"), "name": "relp", "coefficient": "relp"},
        {**jumprelu, "name": "transcoder", "hook": "mlp_in.1", "target": "mlp_out.1", "skip": True},
        {**jumprelu, "name": "crosscoder", "more_hooks": ["resid_post.2"]},
    ]
    done = run_here("train", write_config(tmp_path, tree, sae=saes, index__build=False))
    assert done.returncode == 0, done.stderr
    for sae in saes:
        folder = tmp_path / "runs" / "tiny" / "dictionaries" / sae["name"]
        metrics = json.loads((folder / "metrics.json").read_text())
        assert 0 < metrics["fvu"] < 1 and 0 < metrics["l0"] < 64 and metrics["ce"]["clean"] > 0
        assert sae["name"] != "relp" or metrics["with_gradient"]["fvu"] != metrics["fvu"]
        assert sae["name"] != "transcoder" or dictionary.load(str(folder)).W_skip.abs().max() > 0


@pytest.mark.parametrize("name", [n.replace("_", "-") for n in ARCHITECTURES])
def test_every_architecture_is_trained_evaluated_and_indexed(family, name):
    folder = family / "dictionaries" / name
    metrics = json.loads((folder / "metrics.json").read_text())
    lines = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert lines[-1]["fvu"] < 0.9 * lines[0]["fvu"]
    assert 0 < metrics["fvu"] < 1 and 0 < metrics["l0"] <= 64
    assert metrics["ce"]["clean"] > 0 and metrics["kl"]["spliced"] > 0
    assert (folder / "store" / "current.json").exists() and (folder / "contexts.parquet").exists()
    assert "fraction of variance unexplained" in (folder / "report.md").read_text()
    sae = dictionary.load(str(folder))
    assert torch.isfinite(sae(torch.randn(5, sae.d_in))).all()


def test_training_together_changes_no_bit(tmp_path, tree):
    weights = []
    for number, saes in enumerate(([entry("batch_topk")], [entry("jumprelu"), entry("batch_topk"), entry("topk")])):
        (tmp_path / str(number)).mkdir()
        done = run_here("train", write_config(tmp_path / str(number), tree, sae=saes))
        assert done.returncode == 0, done.stderr
        path = tmp_path / str(number) / "runs" / "tiny" / "dictionaries" / "batch-topk"
        weights.append(dictionary.load(str(path)).state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_every_architecture_opens_in_the_server(family):
    from fastapi.testclient import TestClient

    from server.app import create_app
    from server.catalogue import open_catalogue

    with TestClient(create_app(open_catalogue([family])), base_url="http://localhost") as client:
        listed = {d["architecture"]: d for d in client.get("/api/v1/dictionaries").raise_for_status().json()}
        assert set(listed) == set(ARCHITECTURES)
        assert listed["relu"]["k"] is None and listed["topk"]["k"] == 4
        for d in listed.values():
            address = f"/api/v1/dictionaries/{d['id']}"
            assert client.get(f"{address}/features/0").raise_for_status().json()["feature"] == 0
            names = {f["name"] for f in client.get(f"{address}/download").raise_for_status().json()}
            assert {"report.md", "weights.safetensors"} <= names


def test_gradient_dictionaries_name_both_ways_of_selecting(family):
    metrics = json.loads((family / "dictionaries" / "gradient" / "metrics.json").read_text())
    assert metrics["with_gradient"]["fvu"] != metrics["fvu"]
    assert "with_gradient_ce_increase" in metrics
