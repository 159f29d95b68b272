"""Whole runs in processes of their own: finished, killed, stopped, damaged, resumed to the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import copy_run, free_port, rows_of, run_here, write_config
from preloaded import SaeProcess, Stop, exists, is_larger, run_cli
from safetensors.torch import load_file

from feature_store import queries
from feature_store.store import Store
from sae.publish import dictionary
from sae.publish.dictionary import read_card


def weights(run: Path, name: str = "first"):
    return load_file(run / "dictionaries" / name / "weights.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def lines(run: Path, name: str = "first"):
    return (run / "dictionaries" / name / "training.jsonl").read_text()


def test_summary_tells_the_figures_and_the_next_step(tmp_path, tree):
    done = run_cli("train", write_config(tmp_path, tree))
    assert done.returncode == 0
    for part in ("fvu", "l0", "loss recovered", "dead", "labelled", "tokens/s", "sae serve"):
        assert part in done.stdout
    run = tmp_path / "runs" / "tiny"
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "summary.json", "dictionaries", "tokens"}
    assert not (run / "checkpoints").exists()
    assert {p.name for p in (run / "activations").iterdir()} == {"resid_post.1.json"}  # the statistics, for `sae eval`
    again = run_here("train", tmp_path / "config.yaml")
    assert again.returncode == 0 and "complete already" in again.stderr


def test_same_config_and_seed_give_the_same_bits(tmp_path, tree, undisturbed):
    assert run_cli("train", write_config(tmp_path, tree)).returncode == 0  # another process than that of the fixture
    run = tmp_path / "runs" / "tiny"
    assert same(weights(run), weights(undisturbed))
    assert lines(run) == lines(undisturbed)
    other = write_config(tmp_path, tree, seed=1, name="other")
    assert run_here("train", other).returncode == 0
    assert not same(weights(tmp_path / "runs" / "other"), weights(undisturbed))


@pytest.mark.parametrize("cache", [True, False])
def test_kill_in_training_then_the_same_command_ends_with_the_same_bits(tmp_path, tree, undisturbed, cache):
    config = write_config(tmp_path, tree, harvest__cache=cache)
    run = tmp_path / "runs" / "tiny"
    for n in (1, 2):
        reached = partial(exists, run / "checkpoints", "checkpoint-*", n)
        assert run_cli("train", config, stop=Stop(reached)).returncode == -signal.SIGKILL
        if n == 2:  # half a checkpoint, as a kill inside the writer leaves it
            (run / "checkpoints" / ".checkpoint-000000099999.writing").mkdir(exist_ok=True)
    done = run_here("train", config)
    assert done.returncode == 0, done.stderr
    assert "resuming after" in done.stderr
    assert same(weights(run), weights(undisturbed))
    assert lines(run) == lines(undisturbed)


def test_kill_in_indexing_then_the_same_command_ends_with_the_same_store(tmp_path, tree, undisturbed):
    config = write_config(tmp_path, tree)
    run = tmp_path / "runs" / "tiny"
    store = run / "dictionaries" / "first" / "store"
    stopped = run_cli("train", config, stop=Stop(partial(exists, store, "contexts.building")))
    assert stopped.returncode == -signal.SIGKILL
    assert not (store / "current.json").exists()
    assert run_here("train", config).returncode == 0
    ours, theirs = Store(store), Store(undisturbed / "dictionaries" / "first" / "store")
    for table in ("feature", "context_pack", "feature_token", "token", "document", "random_window"):
        sql = f"select * from {table} order by all"
        assert ours.cursor().execute(sql).fetchall() == theirs.cursor().execute(sql).fetchall()
    sql = "select * from explanation order by all"
    assert ours.cursor().execute(sql).fetchall() == theirs.cursor().execute(sql).fetchall()
    assert not list(store.glob("*.building*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_writes_a_checkpoint_and_exits_75(tmp_path, tree, undisturbed, number):
    config = write_config(tmp_path, tree, train__checkpoint_tokens=10**9)
    run = tmp_path / "runs" / "tiny"
    log = run / "training-first.jsonl"
    assert run_cli("train", config, stop=Stop(partial(is_larger, log, 300), number)).returncode == 75
    assert len(list((run / "checkpoints").glob("checkpoint-*"))) == 1
    assert run_here("train", config).returncode == 0
    assert same(weights(run), weights(undisturbed))


def test_a_stop_outside_training_keeps_what_is_finished(tmp_path, tree, undisturbed):
    config = write_config(tmp_path, tree)
    run = tmp_path / "runs" / "tiny"
    trained = run / "dictionaries" / "first" / "card.json"
    assert run_cli("train", config, stop=Stop(trained.exists, signal.SIGINT)).returncode == 75
    assert trained.exists() and not (run / "summary.json").exists()
    assert run_here("train", config).returncode == 0
    assert same(weights(run), weights(undisturbed))


def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, tree, undisturbed):
    config = write_config(tmp_path, tree, train__checkpoint_tokens=2000)
    run = tmp_path / "runs" / "tiny"
    run_cli("train", config, stop=Stop(partial(exists, run / "checkpoints", "checkpoint-*", 2)))
    newest = max((run / "checkpoints").glob("checkpoint-*"))
    damaged = newest / "state-00000-of-00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-7] + b"\0" * 7)
    copy = tmp_path / "copy"
    shutil.copytree(run / "checkpoints", copy)
    done = run_here("train", config)
    assert done.returncode == 0 and "differs from its manifest" in done.stderr
    assert same(weights(run), weights(undisturbed))


def test_all_checkpoints_damaged_is_an_error_not_a_fresh_start(tmp_path, tree):
    config = write_config(tmp_path, tree)
    run = tmp_path / "runs" / "tiny"
    run_cli("train", config, stop=Stop(partial(exists, run / "checkpoints", "checkpoint-*")))
    for path in (run / "checkpoints").glob("checkpoint-*/state.json"):
        path.write_text("{")
    done = run_here("train", config)
    assert done.returncode == 66 and "every checkpoint is damaged" in done.stderr


def test_another_config_in_the_same_folder_is_refused(tmp_path, tree, undisturbed):
    run = tmp_path / "runs" / "tiny"
    shutil.copytree(undisturbed, run)
    done = run_here("train", write_config(tmp_path, tree, train__lr=0.1))
    assert done.returncode == 2 and "differ" in done.stderr and "train" in done.stderr


def test_two_runs_on_one_folder_are_refused(tmp_path, tree):
    config = write_config(tmp_path, tree)
    owner = tmp_path / "runs" / "tiny" / ".owner"
    first = SaeProcess("train", config, stop=Stop(owner.exists, signal.SIGSTOP))
    while not owner.exists():
        time.sleep(0.01)
    second = run_here("train", config)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert second.returncode == 73 and f"process {first.pid}" in second.stderr


WRONG_INPUTS = [
    ({"sae__0__hook": "mlp_out.40"}, 2, "the model has layers 0..2"),
    ({"text__ctx_len": 4096, "harvest__batch_contexts": 1}, 2, "the model reads at most 128"),
    ({"model__path": "/nowhere/model"}, 66, "no config.json there"),
    ({"model__sha256": {"model.safetensors": "0" * 64}}, 66, "the config pins 0000"),
    ({"text__sources__0__data_files": ["/nowhere/x.jsonl"]}, 65, "no file matches data_files"),
    ({"train__tokens": 10**8}, 65, "train tokens, the sources gave"),
    ({"device": "cuda"}, 69, "torch sees no GPU"),
]


@pytest.mark.parametrize(("change", "code", "message"), WRONG_INPUTS, ids=[next(iter(c)) for c, _, _ in WRONG_INPUTS])
def test_wrong_inputs_are_one_clear_line(tmp_path, tree, change, code, message):
    if change.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = run_here("train", write_config(tmp_path, tree, **change))
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert sum(line.startswith("error:") for line in done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs" / "tiny" / "dictionaries").exists()


def test_a_folder_that_cannot_be_written_is_exit_74(tmp_path, tree):
    config = write_config(tmp_path, tree)
    (tmp_path / "runs").write_text("a file, not a folder")
    done = run_here("train", config)
    assert done.returncode == 74 and "Traceback" not in done.stderr and str(tmp_path / "runs") in done.stderr


def test_a_loss_that_is_not_finite_is_exit_71():
    from sae.architectures.topk import TopKConfig
    from sae.errors import NumericError
    from sae.model.hookpoints import Channel, HookPoint
    from sae.stream.activations import _measure
    from sae.training.trainer import SaeTrainer

    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    config = TopKConfig(name="x", hook=HookPoint("resid_post", 0), d_sae=32, k=2)
    trainer = SaeTrainer(config, {config.hook: _measure(x, None)}, seed=0, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        trainer.sae.b_dec.fill_(float("inf"))
    trainer.step({Channel(config.hook): x}, 0.001)
    with pytest.raises(NumericError, match=r"Lower train\.lr") as caught:
        trainer.log_line(0.001)
    assert caught.value.exit_code == 71


def test_the_norm_filter_is_recorded_and_applied(tmp_path, tree, undisturbed):
    done = run_here("train", write_config(tmp_path, tree, harvest__max_norm_multiple=1.1))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "tiny" / "dictionaries" / "first"
    filters = read_card(folder).filters
    unfiltered = read_card(undisturbed / "dictionaries" / "first").filters
    assert filters is not None and unfiltered is not None
    assert filters.max_norm == pytest.approx(1.1 * filters.median_norm)
    assert 0.3 * unfiltered.positions_kept < filters.positions_kept < 0.98 * unfiltered.positions_kept
    assert Store(folder / "store").meta["n_tokens"] == filters.positions_kept
    last = json.loads((folder / "training.jsonl").read_text().splitlines()[-1])
    assert last["lr"] < 0.001  # the schedule ends although fewer positions are trained on


def test_a_log_that_was_cut_short_is_mended(tmp_path):
    from sae.training.loop import truncate_log

    path = tmp_path / "log.jsonl"
    path.write_text('{"tokens_seen": 1}\n{"tokens_seen": 2}\n{"tokens_seen": 3}\n{"tok')
    truncate_log(path, 2)
    assert path.read_text() == '{"tokens_seen": 1}\n{"tokens_seen": 2}\n'
    path.write_text('{"tokens_seen": 1}\n{"tok')
    truncate_log(path, 5)
    assert path.read_text() == '{"tokens_seen": 1}\n'


@pytest.mark.parametrize("hook", ["resid_pre.1", "attn_out.1", "attn_z.1", "mlp_out.1", "mlp_hidden.1"])
def test_every_site_trains_and_indexes(tmp_path, tree, hook):
    done = run_here("train", write_config(tmp_path, tree, sae__0__hook=hook))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "tiny" / "dictionaries" / "first"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["fvu"] < 0.9
    assert read_card(folder).sae["hook"] == hook


def test_two_dictionaries_share_one_harvest(tmp_path, tree, undisturbed, monkeypatch):
    """The model reads every token once, and the first dictionary is the one that comes out alone."""
    from rich.console import Console

    from sae.foundation.screen import Screen
    from sae.pipeline.config import load_config
    from sae.pipeline.run import run
    from sae.stream.activations import Activations

    harvested = []
    harvest = Activations._harvest
    monkeypatch.setattr(
        Activations, "_harvest", lambda self, g: harvested.append((id(self), g.start)) or harvest(self, g)
    )
    wide = {**tree["sae"][0], "name": "wide", "d_sae": 96, "k": 8}
    summary = run(load_config(write_config(tmp_path, tree, sae=[tree["sae"][0], wide])), Screen(Console(quiet=True)))
    assert set(summary.dictionaries) == {"first", "wide"}
    assert len(harvested) == len(set(harvested))
    folder = tmp_path / "runs" / "tiny"
    assert same(weights(folder), weights(undisturbed))
    assert weights(folder, "wide")["W_dec"].shape == (96, 32)


def test_store_figures_agree_with_the_dictionary(finished):
    store = Store(finished / "dictionaries" / "first" / "store")
    card = read_card(finished / "dictionaries" / "first")
    rows = rows_of(store)
    assert sum(row.density for row in rows) <= card.sae["k"] + 1e-9
    assert len(rows) == card.sae["d_sae"]
    filters = card.filters
    assert filters is not None
    assert filters.positions_kept < filters.positions_read
    assert filters.drop_positions == 1 and filters.special_ids_dropped == [0, 1]
    assert store.meta["n_tokens"] == filters.positions_kept
    for feature in (r.feature for r in rows if r.n_fired):
        windows = queries.windows(store, feature)
        top = [w for w in windows if w.group == "top"]
        peaks = [w.acts[w.peak] for w in top]
        assert peaks == sorted(peaks, reverse=True)
        assert max(peaks) == pytest.approx(next(r.max_act for r in rows if r.feature == feature), rel=1e-4)


def test_parquet_exports_hold_real_lists(finished):
    import duckdb

    folder = finished / "dictionaries" / "first"
    connection = duckdb.connect()
    read = lambda name, sql: connection.execute(sql.replace("FILE", f"'{folder / name}'")).fetchall()  # noqa: E731
    assert read("features.parquet", "select count(*), max(len(promoted)) from FILE") == [(64, 10)]
    n, bad = read("contexts.parquet", "select count(*), count(*) filter (len(token_ids) != len(acts)) from FILE")[0]
    assert n > 64 and bad == 0
    tokens, most = read("token_latents.parquet", "select count(*), max(len(latents)) from FILE")[0]
    assert (tokens, most) == (12_000, 4)


def test_loaded_dictionary_reconstructs_as_measured(finished):
    from sae.model.language_model import load
    from sae.pipeline.config import load_config
    from sae.stream.activations import Activations
    from sae.stream.harvest import Harvester
    from sae.text.tokens import Contexts

    folder = finished / "dictionaries" / "first"
    sae = dictionary.load(str(folder))
    config = load_config(finished / "config.yaml")
    lm = load(config.model, torch.device("cpu"))
    contexts = Contexts(finished / "tokens" / "held_out", 32, False, "<u2", 32)
    held_out = Activations(Harvester(lm, sae.config.channels, config.harvest, "joined"), contexts, 32, folder=None)
    x = held_out.segment(0).rows(sae.config.reads).float()
    x_hat = sae(x)
    fvu = float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert fvu == pytest.approx(metrics["fvu"], rel=1e-3)
    assert len(x) == metrics["rows"]


def test_damaged_dictionaries_are_refused(finished, tmp_path):
    from sae.errors import ArtefactError

    folder = tmp_path / "copy"
    copy_run(finished / "dictionaries" / "first", folder)
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "weights.safetensors").write_bytes(bytes(data))
    with pytest.raises(ArtefactError, match="SHA-256 is"):
        dictionary.load(str(folder))
    with pytest.raises(ArtefactError, match=r"no card\.json"):
        dictionary.load(str(tmp_path))


def test_wandb_offline_logs_and_jsonl_stays_and_nothing_holds_a_secret(tmp_path, tree):
    secrets = dict.fromkeys(("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"), "canary" * 7)
    done = run_cli("train", write_config(tmp_path, tree, log__wandb="offline"), env={**os.environ, **secrets})
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "tiny"
    assert list((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(lines(run).splitlines()) > 10
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 30 and not [path for path in written if b"canarycanary" in path.read_bytes()]
    assert "canarycanary" not in done.stdout + done.stderr


def test_wandb_online_without_a_key_says_what_to_do(tmp_path, tree):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"HOME": str(tmp_path)}
    done = run_cli("train", write_config(tmp_path, tree, log__wandb="online"), env=environment)
    assert done.returncode == 69 and "set log.wandb to offline or off" in done.stderr


def test_serving_refuses_a_taken_port_and_missing_runs(finished, tmp_path, server):
    port = server.rsplit(":", 1)[1]
    taken = run_cli("serve", finished, "--port", port)
    assert taken.returncode == 69 and "Choose another with --port" in taken.stderr
    absent = run_here("serve", tmp_path, "--port", free_port())
    assert absent.returncode == 66 and "no finished dictionary there" in absent.stderr
    broken = tmp_path / "broken"
    copy_run(finished / "dictionaries" / "first", broken)
    name = json.loads((broken / "store" / "current.json").read_text())["contexts"]["file"]
    (broken / "store" / name).write_bytes(b"not a database" * 100)
    bad = run_here("serve", broken, "--port", free_port())
    assert bad.returncode == 66 and "published was" in bad.stderr


def test_curves_are_pictures(finished):
    for name in ("curves.png", "density.png"):
        assert (finished / "dictionaries" / "first" / name).read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((finished / "dictionaries" / "first" / "metrics.json").read_text())
    assert np.sum(metrics["density_histogram"]["latents"]) == 64 - metrics["silent_on_held_out"] > 0


def test_the_table_of_a_run_knows_what_its_version_wrote():
    from sae.pipeline.efficiency import Rate, table

    seconds = {"model": 2.0, "train": 44.0}
    assert "train" in table(seconds, {}, {}) and "peak" not in table(seconds, {}, {})
    rate = Rate(tokens=4_400_000, seconds=44.0, utilisation=0.5)
    said = table(seconds, {"train": rate}, {"process": 3 << 30})
    assert "100,000" in said and "50%" in said and "process 3.0 GiB" in said
