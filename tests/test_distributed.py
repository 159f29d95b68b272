"""Several processes: the same updates and the same dictionaries as one, checkpoints for any number, and clean ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from fixtures import free_port, run_here, shared, write_config
from preloaded import run_ranks

from feature_store.pointer import read_pointer
from feature_store.store import Store
from sae.foundation.distributed import Processes
from sae.publish import dictionary
from sae.stream.shuffle import RingBuffer, ShufflePlan

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}


def torchrun(n: int, *arguments: Any) -> list[str]:
    """The command that starts n processes here."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    return [*launcher, *map(str, arguments)]


def finish(command: list[str], timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT, stdin=subprocess.DEVNULL
    )


def weights(run: Path, name: str = "first") -> dict[str, torch.Tensor]:
    return dict(dictionary.load(run / "dictionaries" / name).state_dict())


@pytest.fixture(scope="module")
def alone(shared_root: Path, tree: dict[str, Any]) -> Path:
    """The run folder of one process; float32 everywhere, two dictionaries."""

    def train(folder: Path) -> None:
        second = {**tree["sae"][0], "name": "second", "hook": "mlp_out.2", "k": 8}
        done = run_here("train", write_config(folder, tree, sae=[tree["sae"][0], second], train__dtype="float32"))
        assert done.returncode == 0, done.stderr

    return shared(shared_root, "alone", train)[0]


@pytest.mark.parametrize("n", [2, 4])
def test_updates_checkpoints_and_shards_equal_those_of_one_process(tmp_path, n):
    done = finish(torchrun(n, "tests/processes.py", tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": equal") == n


@pytest.mark.parametrize("parallel", ["replicas", "latents", "dictionaries"])
def test_a_run_of_two_processes_gives_the_dictionaries_and_the_store_of_one(alone, tmp_path, parallel):
    path = write_config(tmp_path, _tree_of(alone), train__parallel=parallel)
    first, second = run_ranks(2, free_port(), "train", path)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.count("run tiny") == 1 and second.stdout == "", "only one process says what came out"
    for name in ("first", "second"):
        found, expected = (weights(folder / "runs" / "tiny", name) for folder in (tmp_path, alone))
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-2, atol=2e-4, msg=f"{name} {key}")
        cards = [dictionary.read_card(f / "runs" / "tiny" / "dictionaries" / name) for f in (tmp_path, alone)]
        assert cards[0].training.activations_seen == cards[1].training.activations_seen
        assert cards[0].filters == cards[1].filters
        stores = [_fired(f / "runs" / "tiny" / "dictionaries" / name / "store") for f in (tmp_path, alone)]
        assert stores[0][0] == stores[1][0] and len(stores[0][1]) == 64
        np.testing.assert_allclose(stores[0][1], stores[1][1], rtol=0.05, atol=5)


def _fired(store: Path) -> tuple[int, list[int]]:
    """(tokens read, firings of every feature) of a published store."""
    opened = Store(store)
    tokens = opened.meta["n_tokens"]
    opened.close()
    with duckdb.connect(str(store / read_pointer(store)["contexts"]["file"]), read_only=True) as connection:
        return tokens, [n for (n,) in connection.execute("select n_fired from feature order by feature").fetchall()]


def _tree_of(folder: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load((folder / "config.yaml").read_text())


def test_a_lost_process_ends_the_run_cleanly_and_any_number_goes_on(alone, tmp_path):
    tree = _tree_of(alone)
    path = write_config(tmp_path, tree, train__tokens=200_000, train__checkpoint_tokens=3000, train__parallel="latents")
    tree = _tree_of(tmp_path)
    tree["text"]["on_end"] = "stop"
    path = write_config(tmp_path, tree)
    process = subprocess.Popen(
        torchrun(2, "-m", "sae.cli", "train", path), env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoints = tmp_path / "runs" / "tiny" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("checkpoint-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    ranks = [int(pid) for pid in _children(process.pid)]
    os.kill(ranks[1], signal.SIGKILL)
    killed = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - killed < 60
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks), "a process is left"
    # torchrun asks the others to stop as well; whichever they notice first is what they say.
    assert "another process of this run is lost" in said or "The same command goes on" in said, said
    assert 'distributed.py", line' not in said
    done = run_here("train", path)
    assert done.returncode == 0, done.stderr
    assert "resuming after" in done.stderr


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()


def test_what_cannot_be_shared_is_refused_before_training(alone, tmp_path):
    tree = _tree_of(alone)
    tree["sae"] = [{"name": "first", "architecture": "gated", "hook": "resid_post.1", "d_sae": 64}]
    path = write_config(tmp_path, tree, train__parallel="latents")
    ranks = run_ranks(2, free_port(), "train", path)
    assert all(rank.returncode != 0 for rank in ranks)
    said = "".join(rank.stderr for rank in ranks)
    assert "train.parallel: latents is for TopK dictionaries" in said
    assert said.count("train.parallel: latents") == 1 and 'trainer.py", line' not in said


def test_the_order_of_activations_does_not_depend_on_how_many_processes_share_them():
    sizes, plan = {0: 90, 1: 70, 2: 40}, ShufflePlan(3, 1, 7)
    starts = {0: 0, 1: 90, 2: 160}

    def drawn(n: int) -> list[set[int]]:
        rings = []
        for rank in range(n):
            ring = RingBuffer({"x": 1}, plan.slots, 100, torch.float32, device=torch.device("cpu"))  # pyright: ignore[reportArgumentType]
            rings.append((Processes(rank, n), ring))
        batches: list[set[int]] = []
        for cycle in range(plan.n_cycles):
            parts = []
            for processes, ring in rings:
                for g in plan.segments_in(cycle):
                    if g not in ring.counts:
                        cuts = [Processes(r, n).share(sizes[g]) for r in range(n)]
                        own = cuts[processes.rank]
                        rows = torch.arange(starts[g] + own.start, starts[g] + own.stop).float()[:, None]
                        ring.put(g, {"x": rows}, [c.stop - c.start for c in cuts])  # pyright: ignore[reportArgumentType]
                parts.append(list(ring.batches(ring.cycle_order(plan, cycle), 32, 0, processes)))
            for shares in zip(*parts, strict=True):
                for (x, counts), (processes, _) in zip(shares, rings, strict=True):
                    assert len(x["x"]) == counts[processes.rank]
                batches.append({int(v) for x, _ in shares for v in x["x"].flatten()})
        return batches

    assert drawn(1) == drawn(2) == drawn(3)
    assert sorted(i for batch in drawn(2) for i in batch) == list(range(200))
