"""`sae bench`: what it prints, keeps and refuses."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from sae.architectures import build
from sae.architectures.topk import TopKConfig
from sae.benchmarks import cached, index, models, processes, serve, step, stream
from sae.benchmarks.step import saedex
from sae.cli import main
from sae.errors import UnavailableError
from sae.foundation.distributed import check_devices
from sae.foundation.screen import Progress
from sae.foundation.timing import Timed, timed, together
from sae.training.floors import Shape, floors
from sae.training.trainer import SaeTrainer

PACKAGES = {"sparsify": "sparsify", "dictionary_learning": "dictionary_learning", "saelens": "sae_lens"}


def test_a_step_is_timed_beside_floors_and_missing_peers_are_named(tmp_path, capsys):
    out = tmp_path / "step.json"
    command = ["bench", "step", "--device", "cpu", "--shape", "32,128,4,64", "--repeats", "3", "--json", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    found = json.loads(out.read_text())
    steps = found["shapes"][0]["steps"]
    assert found["shapes"][0]["shape"] == {"width": 32, "latents": 128, "k": 4, "tokens": 64}
    assert steps["saedex"]["seconds"] > 0 and "| saedex |" in said and "| encoder product |" in said
    for name in PACKAGES:
        installed = importlib.util.find_spec(PACKAGES[name]) is not None
        assert ("missing" in steps[name]) == (not installed)
        assert steps[name]["seconds"] > 0 if installed else f"| {name} | not installed" in said


def test_the_timed_step_trains(monkeypatch):
    rows = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    trainers = []

    def create(*arguments, **settings):
        trainers.append(SaeTrainer(*arguments, **settings))
        return trainers[-1]

    monkeypatch.setattr("sae.benchmarks.step.SaeTrainer", create)
    step = saedex(Shape(32, 128, 4, 64), rows, torch.float32)
    (trainer,) = trainers
    step()
    before = trainer.sae.W_dec.clone()
    step()
    assert trainer.tokens_seen == 128 and not torch.equal(before, trainer.sae.W_dec)
    for call in floors(Shape(32, 128, 4, 64), rows, torch.float32).values():
        assert timed(call, torch.device("cpu"), 2).seconds > 0


def test_keeping_pays_from_the_run_on_that_makes_it_cheaper():
    assert cached.break_even(10.0, 12.0, 2.0) == 2
    assert cached.break_even(10.0, 30.0, 9.0) == 22
    assert cached.break_even(10.0, 10.0, 10.0) is None
    for harvest, keep, read in ((3.0, 3.5, 1.0), (1.0, 7.0, 0.9), (5.0, 4.0, 1.0)):
        n = cached.break_even(harvest, keep, read)
        assert n * harvest > keep + (n - 1) * read and (n == 1 or (n - 1) * harvest <= keep + (n - 2) * read + 1e-9)


def test_the_stream_is_measured_with_its_parts():
    size = stream.Size(64, 3, 1, 256, 128, 4, 128, 16, 4096)
    found = stream.measure(torch.device("cpu"), size)
    seconds = found["seconds"]
    for name in ("tokens on disk", "harvest alone", "step alone", "end to end", "gradient harvest alone"):
        assert seconds[name] > 0
    said = stream.table(found)
    assert "| end to end |" in said and "gradient harvest over its FLOPs" in said
    # 3 blocks there and 1 back, against the 2 of the harvest, and the head there and back
    assert 2 < size.gradient_harvest() < 4


def test_the_index_is_measured_from_few_tokens_to_many():
    size = index.Size(64, 4, 16, 100, (2048, 4096))
    found = index.measure(size)
    assert [run["tokens"] for run in found["runs"]] == [2048, 4096]
    assert all(run["whole_s"] > run["contexts_s"] > 0 and run["store_bytes"] > 0 for run in found["runs"])
    assert "time per token, the last over the first" in index.table(found)


def test_several_processes_are_wanted_and_compared(capsys):
    assert main(["bench", "processes", "--device", "cpu"]) == 2
    assert "torchrun --nproc-per-node 2" in capsys.readouterr().err
    alone, replicas, latents = ({"seconds": s, "peak_bytes": b} for s, b in ((4e-3, 100), (5e-3, 90), (4e-3, 55)))
    step = {"shape": {"width": 8, "latents": 64, "k": 4, "tokens": 32}}
    steps = [{**step, "alone": alone, **dict.fromkeys(processes.WAYS, replicas), "latents": latents}]
    streams = [{"size": {"tokens": 1000, "batch_tokens": 10}, "seconds": {"alone": 2.0, "replicas": 1.0}}]
    said = processes.table({"processes": 2, "steps": steps, "streams": streams})
    assert "| 8, 64, 4, 32 | 4.00 | replicas | 5.00 | 1.60 | 0.90 |" in said  # each brings as many rows as one alone
    assert "| latents | 4.00 | 1.00 | 0.55 |" in said and "| replicas | 1,000 | 2.00 |" in said


def test_a_server_is_measured(finished, capsys, monkeypatch):
    monkeypatch.setattr(serve, "SECONDS", 0.3)
    assert main(["bench", "serve", str(finished)]) == 0
    said = capsys.readouterr().out
    rows = [line.split(" | ") for line in said.splitlines() if line.startswith("| ")]
    assert {"| constant bytes, FastAPI", "| one feature, 256 in turn", "| search in labels"} <= {row[0] for row in rows}
    assert "256 connections that search at once: answers" in said


def test_models_of_several_kinds_are_checked(tmp_path, capsys):
    """A usual one, a mixture of experts, a window, a state, a projection before the head, and two that are no such model."""
    classes = (
        "LlamaForCausalLM", "MixtralForCausalLM", "Gemma3ForCausalLM", "MambaForCausalLM", "FalconForCausalLM",
        "XLNetLMHeadModel", "MusicgenForCausalLM",
    )  # fmt: skip
    out = tmp_path / "models.json"
    assert main(["bench", "models", *classes, "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert (
        "7 classes" in said and "6 can be built, 5 of these read from left to right alone, and 5 of these pass" in said
    )
    assert "| `LlamaForCausalLM` | all | yes | passes |" in said
    assert "| `MixtralForCausalLM` | all but mlp_hidden | yes | passes |" in said
    assert "| `MambaForCausalLM` | resid_pre, resid_post | refused | passes |" in said
    assert "| `XLNetLMHeadModel` | - | - | refused: later tokens change its predictions |" in said
    assert "| `MusicgenForCausalLM` | - | - | cannot be built: " in said
    checked = {model["name"]: model for model in json.loads(out.read_text())["models"]}
    assert set(checked) == set(classes) and checked["Gemma3ForCausalLM"]["sites"]["mlp_hidden"] == 4
    assert main(["bench", "models", "Llama"]) == 2 and "class Llama." in capsys.readouterr().err


def test_a_check_that_does_not_hold_is_said(monkeypatch):
    """Harvest with a fault put in: activations of another layer, and a sum that lacks a part."""
    right = models._harvested
    monkeypatch.setattr(
        models, "_harvested", lambda *a: {h: x + (h.site == "resid_post") for h, x in right(*a).items()}
    )
    (checks,) = models.measure(["LlamaForCausalLM"], Progress())
    assert not checks.passes
    assert checks.outcomes["activations"].startswith("resid_post.0: differs by")
    assert checks.outcomes["sums"].startswith("the sum in layer 0: differs by")
    assert "resid_post.0: differs by" in models.table([checks])


def test_a_wrong_shape_is_one_clear_line(capsys):
    for text in ("1,2,3", "a,b,c,d", "16,8,9,4", "0,8,1,4"):
        assert main(["bench", "step", "--device", "cpu", "--shape", text]) == 2
        assert f"--shape: {text!r}" in capsys.readouterr().err


def test_rounds_are_put_together_and_rows_are_no_decoder_rows(monkeypatch):
    rounds = [Timed(2.0, 10, 1.0, 3.0), Timed(4.0, 30, 2.0, 9.0), Timed(3.0, 20, 0.5, 4.0)]
    assert together(rounds) == Timed(3.0, 30, 0.5, 9.0)
    seen = {}

    def create(shape, rows, dtype, **train):
        seen["cosine"] = torch.nn.functional.normalize(rows.float(), dim=1)
        return lambda: None

    monkeypatch.setattr("sae.benchmarks.step.saedex", create)
    shape = Shape(32, 128, 4, 64)
    measured = step.measure(shape, torch.device("cpu"), 2)
    assert measured["steps"]["saedex"]["slowest"] >= measured["steps"]["saedex"]["fastest"]
    sae = build(TopKConfig(name="x", hook="resid_post.0", d_sae=128, k=4), 32)
    sae.initialise(torch.Generator().manual_seed(0), torch.zeros(32))
    assert (seen["cosine"] * sae.W_dec[:64]).sum(1).abs().max() < 0.9


def test_more_processes_than_gpus_are_one_line():
    check_devices(2, 2)
    with pytest.raises(UnavailableError, match=r"4 processes on a machine with 1 GPU; .*nproc-per-node 1"):
        check_devices(4, 1)
