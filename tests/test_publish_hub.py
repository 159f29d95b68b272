"""A dictionary goes to the hub in one command, and saedex and SAELens load it from there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import httpx
import pytest
import torch
from fake_hub import serving_hub
from fixtures import copy_run, serving
from preloaded import run_cli

import sae

ACCOUNT = "hf_of_ada"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("repos")
    with serving_hub(root) as server:
        server.account = ACCOUNT
        yield server


@pytest.fixture(scope="module")
def dictionary(finished, tmp_path_factory):
    return copy_run(finished, tmp_path_factory.mktemp("run") / "tiny") / "dictionaries" / "first"


def environment(hub, tmp_path, token=ACCOUNT):
    return {
        **os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "SAEDEX_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip


def command(hub, tmp_path, *arguments, token=ACCOUNT):
    return run_cli(*arguments, env=environment(hub, tmp_path, token))


@pytest.fixture(scope="module")
def published(hub, dictionary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    done = command(hub, folder, "publish", dictionary, "ada/words", "--licence", "apache-2.0")
    assert done.returncode == 0, done.stderr
    assert "hf://ada/words: " in done.stdout and "SAELens" not in done.stdout
    return hub.root / "ada" / "words"


def test_the_repository_says_what_it_holds_and_how_it_is_loaded(published, dictionary):
    text = (published / "README.md").read_text()
    front = text.split("---")[1]
    assert "license: apache-2.0" in front and "- sparse-autoencoder" in front and "library_name: saedex" in front
    assert 'sae.load("hf://ada/words")' in text and 'SAE.from_pretrained("ada/words", "saelens")' in text
    metrics = json.loads((dictionary / "metrics.json").read_text())
    assert f"| {metrics['fvu']:.3f} |" in text and f"| {metrics['l0']:.1f} |" in text
    names = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    assert {"card.json", "weights.safetensors", "store/current.json", "saelens/cfg.json"} <= names
    assert not any(name.startswith((".", "controls", "comparisons")) for name in names)
    assert "/home" not in text and str(dictionary) not in text


def test_saedex_loads_it_from_the_hub(hub, published, dictionary, tmp_path):
    program = "import sae, torch, sys; torch.save(sae.load(sys.argv[1]).state_dict(), sys.argv[2])"
    done = subprocess.run(
        [sys.executable, "-c", program, "hf://ada/words", str(tmp_path / "loaded.pt")],
        capture_output=True, text=True, check=False, env=environment(hub, tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loaded, local = torch.load(tmp_path / "loaded.pt"), sae.load(dictionary).state_dict()
    assert loaded.keys() == local.keys() and all(torch.equal(loaded[name], local[name]) for name in local)
    fetched = [name for name in hub.asked if "resolve" in name and "/store/" in name]
    assert not fetched  # weights alone


def test_the_explorer_serves_it_from_the_hub(hub, published, tmp_path, monkeypatch):
    for name, value in environment(hub, tmp_path).items():
        monkeypatch.setenv(name, value)
    with serving("hf://ada/words") as address:
        [item] = httpx.get(f"{address}/api/v1/dictionaries").json()
        assert item["name"] == "first"
        weights = httpx.get(f"{address}/api/v1/dictionaries/{item['id']}/download/weights.safetensors")
        assert weights.content == (published / "weights.safetensors").read_bytes()


def test_the_same_again_sends_no_large_file_again(hub, published, dictionary, tmp_path):
    n = len(hub.asked)
    assert command(hub, tmp_path, "publish", dictionary, "hf://ada/words").returncode == 0
    assert not [what for what in hub.asked[n:] if what.startswith("PUT")]
    assert "license:" not in (published / "README.md").read_text()


def test_text_stays_here_if_that_is_wanted(hub, dictionary, tmp_path):
    done = command(hub, tmp_path, "publish", dictionary, "ada/plain/inner", "--no-text")
    assert done.returncode == 0, done.stderr
    names = {p.relative_to(hub.root / "ada/plain/inner").parts[0] for p in (hub.root / "ada/plain/inner").rglob("*")}
    assert "store" not in names and "contexts.parquet" not in names and "weights.safetensors" in names


def test_who_may_not_write_is_told_what_to_do(hub, dictionary, tmp_path):
    done = command(hub, tmp_path, "publish", dictionary, "ada/words", token="hf_of_nobody")
    assert done.returncode == 69 and "refuses this account (403)" in done.stderr and "hf auth login" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_dictionary_without_a_store_is_not_sent_half(hub, dictionary, tmp_path):
    copied = tmp_path / "first"
    shutil.copytree(dictionary, copied)
    shutil.rmtree(copied / "store")
    n = len(hub.asked)
    done = command(hub, tmp_path, "publish", copied, "ada/half")
    assert done.returncode == 2 and "no store there" in done.stderr and "--no-text" in done.stderr
    assert len(hub.asked) == n


def test_what_is_not_there_is_said(hub, published, tmp_path):
    program = (
        "import sae, sys\nfrom sae.errors import SaedexError\nfor address in sys.argv[1:]:\n    try: sae.load(address)\n"
        "    except SaedexError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "hf://ada/nothing", "hf://ada", "hf://ada/words/saelens"],
        capture_output=True, text=True, check=False, env=environment(hub, tmp_path),
    )  # fmt: skip
    said = done.stdout.splitlines()
    assert len(said) == 3 and "no such repository" in said[0], done.stderr
    assert "hf://OWNER/NAME is wanted" in said[1] and "no dictionary folder of saedex there" in said[2]
