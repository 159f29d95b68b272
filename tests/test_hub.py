"""Downloads from a server that speaks the hub's protocol: what arrives is what was sent, and every failure is told plainly."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from fake_hub import serving_hub

PROGRAM = """
import json, sys
from sae.errors import SaedexError
from sae.foundation.hub import fetch, files_of
for call in json.loads(sys.argv[1]):
    try:
        if call == "list":
            print(json.dumps(files_of("ada/words")))
        else:
            folder = fetch(*call)
            print(json.dumps(sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())))
    except SaedexError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture
def hub(tmp_path):
    folder = tmp_path / "repos" / "ada" / "words" / "layer_3"
    folder.mkdir(parents=True)
    (folder / "params.safetensors").write_bytes(os.urandom(300_000))
    (folder / "config.json").write_text("{}")
    (folder.parent / "README.md").write_text("words")
    with serving_hub(tmp_path / "repos") as server:
        yield server


def asked(hub, tmp_path, *calls, offline=False):
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
    }
    environment |= {"HF_HUB_OFFLINE": "1" if offline else "0", "HF_HUB_DISABLE_XET": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(calls)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_files_are_fetched_once_and_are_there_without_a_network(hub, tmp_path):
    wanted = ("ada/words", ["layer_3/*"])
    names, files = asked(hub, tmp_path, "list", wanted)
    assert names == ["README.md", "layer_3/config.json", "layer_3/params.safetensors"]
    assert files == ["layer_3/config.json", "layer_3/params.safetensors"]
    n_asked = len(hub.asked)
    assert asked(hub, tmp_path, wanted, offline=True) == [files] and len(hub.asked) == n_asked


def test_an_interrupted_download_goes_on(hub, tmp_path):
    hub.interrupted.add("layer_3/params.safetensors")
    wanted = ("ada/words", ["layer_3/*"])
    results = asked(hub, tmp_path, wanted, wanted)
    assert results[-1] == ["layer_3/config.json", "layer_3/params.safetensors"]
    stored = next((tmp_path / "hf").rglob("params.safetensors")).read_bytes()
    assert stored == (hub.root / "ada/words/layer_3/params.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["layer_3/params.safetensors", "layer_3/config.json"])
def test_a_file_of_another_hash_is_refused_and_fetched_again(hub, tmp_path, name):
    hub.damaged.add(name)
    [[kind, told]] = asked(hub, tmp_path, ("ada/words", ["layer_3/*"]))
    assert kind == "ArtefactError" and "fetches it again" in told
    hub.damaged.clear()
    assert asked(hub, tmp_path, ("ada/words", ["layer_3/*"])) == [["layer_3/config.json", "layer_3/params.safetensors"]]


def test_failures_say_what_to_do(hub, tmp_path):
    hub.gated.add("eve/secret")
    told = asked(
        hub,
        tmp_path,
        ("eve/secret", ["*"]),
        ("ada/nothing", ["*"]),
        ("ada/words", ["*"], "v9"),
        ("ada/words", ["layer_9/*"]),
        ("not a name", ["*"]),
    )
    for (kind, text), part in zip(
        told,
        (
            "accept its terms",
            "no such repository",
            "no such revision",
            "has no files layer_9",
            "cannot be a repository",
        ),
        strict=True,
    ):
        assert kind in ("UnavailableError", "ArtefactError") and part in text, text
    [[kind, text]] = asked(hub, tmp_path, ("ada/words", ["*"]), offline=True)
    assert kind == "UnavailableError" and "HF_ENDPOINT" in text
