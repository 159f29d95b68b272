"""`sae open` and `sae index`: dictionaries from anywhere become runs that can be explored, and misfits are told."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import httpx
import pytest
from fake_hub import serving_hub
from fixtures import copy_run, free_port, run_here, serving, write_config
from preloaded import Stop, exists, run_cli
from releases import crosscoder_of_gemma_scope_2, temporal

from feature_store.pointer import read_pointer
from feature_store.store import Store
from sae.errors import ConfigError
from sae.interop.families import CC_BY, GEMMA
from sae.interop.origin import origin_of
from sae.interop.transfer import export_dictionary
from sae.pipeline.config import config_of_run
from sae.pipeline.licences import ask_once
from sae.publish import dictionary


def opened(what, text, runs, *more):
    return run_here("index", what, "--text", text, "--runs", runs, "--tokens", 6000, "--ctx-len", 32, *more)


@pytest.fixture(scope="module")
def text(tmp_path_factory, text_file):
    """Other text than that of training: its second half."""
    path = tmp_path_factory.mktemp("text") / "mine.jsonl"
    path.write_text("".join(text_file.read_text().splitlines(keepends=True)[200:]))
    return path


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, every_architecture):
    """A JumpReLU dictionary of the tiny model in Gemma Scope 2's layout."""
    folder = tmp_path_factory.mktemp("foreign") / "layer_1"
    export_dictionary(every_architecture / "dictionaries" / "jumprelu", "gemma_scope_2", folder)
    return folder


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory, finished, text):
    """The run folder of a dictionary of ours, opened on other text."""
    runs = tmp_path_factory.mktemp("runs")
    done = opened(finished / "dictionaries" / "first", text, runs)
    assert done.returncode == 0, done.stderr
    return runs / "first-on-mine.jsonl"


def test_a_dictionary_of_ours_is_indexed_on_other_text(looked_at, finished):
    folder = looked_at / "dictionaries" / "first"
    check = json.loads((folder / "check.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert 0 < check["fvu"] < 0.9 and check["l0"] == pytest.approx(4, abs=0.1)
    assert metrics["fvu"] == pytest.approx(check["fvu"], rel=0.3) and "opened" in metrics["text"]
    store = Store(folder / "store")
    assert store.meta["text"] == "mine.jsonl" and "first_look" not in store.meta and store.meta["n_tokens"] > 5000
    labels = json.loads((folder / "labels.json").read_text())
    assert labels["features_labelled"] > 20 and labels["controls"]["random"]
    assert (folder / "concepts.json").exists() and (folder / "contexts.parquet").exists()
    card, trained = (dictionary.read_card(f) for f in (folder, finished / "dictionaries" / "first"))
    assert card.weights_sha256 == trained.weights_sha256 and card.run == "first-on-mine.jsonl"
    assert config_of_run(looked_at, "").model == config_of_run(finished, "").absolute().model


def test_the_same_words_go_on_where_they_were(looked_at, finished, text):
    done = opened(finished / "dictionaries" / "first", text, looked_at.parent)
    assert done.returncode == 0 and "complete already" in done.stdout + done.stderr
    other = opened(finished / "dictionaries" / "second", text, looked_at.parent, "--name", looked_at.name)
    assert other.returncode == 2 and "another run" in other.stderr
    longer = run_here("index", finished / "dictionaries" / "first", "--text", text, "--runs", looked_at.parent)
    assert longer.returncode == 2 and "another --tokens" in longer.stderr


def test_eval_and_interpret_work_on_it(looked_at, tmp_path):
    run = copy_run(looked_at, tmp_path / looked_at.name)
    done = run_here("eval", run, "--measures", "decoder")
    assert done.returncode == 0, done.stderr
    done = run_here("interpret", run, "--features", "0-9", "--scorers", "token_lookup")
    assert done.returncode == 0, done.stderr


def test_texts_of_one_dictionary_lead_to_each_other(looked_at, finished, tmp_path):
    for run in (looked_at, finished):
        copy_run(run, tmp_path / run.name)
    with serving(tmp_path) as address:
        get = lambda name: httpx.get(f"{address}/api/v1/dictionaries/{name}").raise_for_status().json()  # noqa: E731
        there, here = get("tiny.first"), get("first-on-mine.jsonl.first")
        assert here["text"] == "mine.jsonl" and not here["is_first_look"]
        assert here["other_texts"] == [{"id": "tiny.first", "text": None}]
        assert there["text"] is None and there["other_texts"] == [{"id": here["id"], "text": "mine.jsonl"}]


def test_a_foreign_dictionary_is_opened(foreign, finished, every_architecture, text, tmp_path):
    done = opened(foreign, text, tmp_path, "--model", finished)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "layer_1-on-mine.jsonl"
    ours = dictionary.load(every_architecture / "dictionaries" / "jumprelu")
    adopted = dictionary.load(run / "dictionaries" / "layer_1")
    assert adopted.config.hook == ours.config.hook and adopted.d_sae == ours.d_sae
    card = dictionary.read_card(run / "dictionaries" / "layer_1")
    assert card.imported_from is not None and card.imported_from.format == "gemma_scope_2"
    assert json.loads((run / "summary.json").read_text())["dictionaries"]["layer_1"]["labels"]["features_labelled"] > 0


def test_dictionaries_that_read_several_tensors_of_a_token_are_opened(finished, text, tmp_path):
    temporal(tmp_path, "a", "temporal", d=32, m=64, k=4, scale=1.0)
    crosscoder_of_gemma_scope_2(tmp_path / "crosscoder", 32, 40, layers=(1, 2))
    for what, hook, reads in (
        ("a/temporal", "resid_post.1", ["resid_post.1", "predicted_resid_post.1"]),
        ("crosscoder", "resid_post.1,resid_post.2", ["resid_post.1", "resid_post.2"]),
    ):
        more = ("--hook", hook, "--model", finished, "--accept-misfit")  # their weights are random numbers
        done = opened(tmp_path / what, text, tmp_path / "runs", *more)
        assert done.returncode == 0, done.stderr
        [folder] = (tmp_path / "runs").glob(f"{what.rpartition('/')[2]}-on-*/dictionaries/*")
        sae = dictionary.load(folder)
        assert [str(read) for read in sae.config.reads] == reads and sae.d_in == 64
        metrics, check = (json.loads((folder / name).read_text()) for name in ("metrics.json", "check.json"))
        assert metrics["fvu"] == pytest.approx(check["fvu"], rel=0.3) and metrics["kl"]["spliced"] > 0
        assert Store(folder / "store").meta["n_tokens"] > 5000
        assert json.loads((folder / "labels.json").read_text())["features_labelled"] > 5
        again = opened(tmp_path / what, text, tmp_path / "runs", *more)
        assert again.returncode == 0 and "complete already" in again.stdout + again.stderr


def test_temporal_dictionaries_are_not_trained(tmp_path, tree):
    sae = {"name": "x", "architecture": "transcoder", "hook": "resid_post.1", "target": "resid_post.1", "skip": True}
    done = run_here("train", write_config(tmp_path, tree, sae=[sae | {"d_sae": 64, "k": 4, "context": {}}]))
    assert done.returncode == 2 and "saedex opens such and trains none" in done.stderr


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (  # made for an input that was multiplied by sqrt(d) first
            lambda t: t | {"w_enc": t["w_enc"] / 32**0.5, "w_dec": t["w_dec"] * 32**0.5, "b_dec": t["b_dec"] * 32**0.5},
            "multiplied by sqrt(d)",
        ),
        (lambda t: t | {"w_dec": -t["w_dec"]}, "another model"),
    ],
)
def test_a_dictionary_that_does_not_fit_is_told_with_reasons(foreign, finished, text, tmp_path, change, told):
    from safetensors.torch import load_file, save_file

    shutil.copytree(foreign, tmp_path / "layer_1")
    path = tmp_path / "layer_1" / "params.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)
    done = opened(tmp_path / "layer_1", text, tmp_path / "runs", "--model", finished)
    assert done.returncode == 66 and "1 is no better than the mean" in done.stderr and told in done.stderr
    store = tmp_path / "runs" / "layer_1-on-mine.jsonl" / "dictionaries" / "layer_1" / "store"
    assert not read_pointer(store)
    done = opened(tmp_path / "layer_1", text, tmp_path / "runs", "--model", finished, "--accept-misfit")
    assert done.returncode == 0 and "no better than the mean" in done.stdout + done.stderr


def test_what_cannot_be_opened_is_one_clear_line(foreign, finished, text, tmp_path):
    for what, more, code, told in (
        (tmp_path / "nothing", (), 2, "no such file or folder"),
        (text.parent, (), 2, "no layout that saedex reads"),
        (foreign, (), 2, "Give --model"),
        (foreign, ("--model", tmp_path / "none here"), 2, "--model"),
        (foreign, ("--model", finished, "--hook", "mlp_hidden.1"), 2, "numbers per token"),
        (foreign, ("--model", finished, "--hook", "resid_post.9"), 2, "layers 0..2"),
        (foreign, ("--model", finished, "--format", "pickle"), 2, "known are"),
        ("gpt2-small-hook-z-kk/blocks.0.hook_z", ("--model", finished), 69, "hub"),
    ):
        runs = tmp_path / "runs"
        done = opened(what, text, runs, *more)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == code and last.startswith("error: ") and told in last, done.stderr
        assert "Traceback" not in done.stderr
        shutil.rmtree(runs, ignore_errors=True)


def test_an_address_that_is_taken_or_open_to_all_is_refused_at_once(foreign, text, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_here("open", foreign, "--text", text, "--runs", tmp_path, "--port", port)
        assert done.returncode == 69 and "Give another" in done.stderr
    done = run_here("open", foreign, "--text", text, "--runs", tmp_path, "--host", "0.0.0.0")
    assert done.returncode == 2 and "--public-read" in done.stderr and not list(tmp_path.iterdir())


def test_a_killed_opening_ends_with_the_same_store(looked_at, finished, text, tmp_path):
    command = ["index", finished / "dictionaries" / "first", "--text", text, "--runs", tmp_path]
    store = tmp_path / looked_at.name / "dictionaries" / "first" / "store"
    stop = Stop(partial(exists, store, "contexts-*.duckdb"))
    assert run_cli(*command, "--tokens", "6000", "--ctx-len", "32", stop=stop).returncode == -signal.SIGKILL
    done = opened(finished / "dictionaries" / "first", text, tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_pointer(store) == read_pointer(looked_at / "dictionaries" / "first" / "store")


def test_open_serves_while_it_works(finished, text, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "sae.cli", "open", str(finished / "dictionaries" / "first"), "--text", str(text)]
    command += ["--runs", str(tmp_path), "--tokens", "6000", "--ctx-len", "32", "--port", str(port), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        seen, deadline = [], time.monotonic() + 120
        while time.monotonic() < deadline and (not seen or seen[-1]["is_first_look"]):
            time.sleep(0.2)
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/dictionaries/first-on-mine.jsonl.first", timeout=5)
            except httpx.TransportError:
                continue
            seen.append(answer.raise_for_status().json())
        assert not seen[-1]["is_first_look"] and seen[-1]["alive"] > 0
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=2)


def test_who_ends_the_server_of_a_finished_opening_ends_the_command(looked_at, finished, text):
    port = free_port()
    command = [sys.executable, "-m", "sae.cli", "open", str(finished / "dictionaries" / "first"), "--text", str(text)]
    command += ["--runs", str(looked_at.parent), "--tokens", "6000", "--ctx-len", "32", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    while "Everything is there" not in process.stdout.readline():
        assert process.poll() is None
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=2).raise_for_status()
            break
        except httpx.TransportError:
            time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    process.stdout.close()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=2)


def test_names_around_a_copy_say_what_the_file_does_not(foreign, tmp_path):
    place = tmp_path / "google" / "gemma-scope-2b-pt-res" / "layer_12" / "width_16k" / "average_l0_82"
    place.mkdir(parents=True)
    (place / "params.npz").write_bytes(b"")
    origin = origin_of(str(place))
    assert origin.format == "gemma_npz" and origin.path == place / "params.npz"
    assert origin.facts == {"model": "google/gemma-2-2b", "l0": 82.0, "d_sae": 16384, "hook": "resid_post.12"}
    assert "CC BY" in (origin.licence or "") and os.path.basename(origin.name)


def test_a_licence_with_conditions_is_asked_about_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEDEX_CACHE", str(tmp_path))
    ask_once("a", CC_BY, is_accepted=False)  # names its authors, which the card does
    terms = f"{CC_BY}; {GEMMA}"
    monkeypatch.setattr("sys.stdin", io.StringIO(""))  # no terminal
    with pytest.raises(ConfigError, match=r"Gemma.s terms of use.*--accept-licence"):
        ask_once("a", terms, is_accepted=False)
    ask_once("a", terms, is_accepted=True)
    ask_once("b", terms, is_accepted=False)

    answers = iter(["n", "y"])
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    with pytest.raises(ConfigError):
        ask_once("c", "another", is_accepted=False)
    ask_once("c", "another", is_accepted=False)
    ask_once("c", "another", is_accepted=False)  # there is no third answer


def test_dictionary_and_model_come_from_the_hub(foreign, tiny_model, text, tmp_path):
    """Through the hub's own client, from a server that speaks its protocol; a second start needs no network."""
    for source, repo in ((foreign, "ada/words/layer_1"), (tiny_model, "ada/tiny")):
        shutil.copytree(source, tmp_path / "repos" / repo)
    command = ["index", "ada/words", "--model", "ada/tiny", "--text", str(text)]
    command += ["--runs", str(tmp_path / "runs"), "--tokens", "6000", "--ctx-len", "32"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    with serving_hub(tmp_path / "repos") as hub:
        environment |= {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
        done = run_cli(*command, env=environment)
    assert done.returncode == 0, done.stderr
    [run] = (tmp_path / "runs").iterdir()
    [folder] = (run / "dictionaries").iterdir()
    assert dictionary.read_card(folder).imported_from.format == "gemma_scope_2"
    assert json.loads((folder / "labels.json").read_text())["features_labelled"] > 0

    environment |= {"HF_HUB_OFFLINE": "1"}
    done = run_cli(*command, env=environment)
    assert done.returncode == 0 and "complete already" in done.stdout + done.stderr
