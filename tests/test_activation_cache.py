"""Activations on disk: the same bits as harvested ones, shared by runs, checked by hash; 8-bit codes near to them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from fixtures import run_here, write_config
from hypothesis import given, settings
from hypothesis import strategies as st
from preloaded import SaeProcess

from sae.errors import ConfigError
from sae.foundation.screen import Progress
from sae.publish import dictionary
from sae.stream.activation_cache import ActivationCache, remove, shared_caches
from sae.stream.packed_rows import PackedRows


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEDEX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "activations"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(dictionary.load(run / "dictionaries" / "first").state_dict())


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_runs_share_activations_and_train_to_the_bits_of_one_that_harvests(tmp_path, tree, undisturbed, home):
    for name in ("one", "two"):
        done = run_here("train", write_config(tmp_path, tree, name=name, harvest__cache="shared"))
        assert done.returncode == 0, done.stderr
        for key, value in weights(tmp_path / "runs" / name).items():
            assert torch.equal(value, weights(undisturbed)[key]), key
    first, second = (summary(tmp_path / "runs" / name)["seconds"] for name in ("one", "two"))
    assert first["harvest"] > 0 and second["harvest"] == 0
    other = write_config(tmp_path, tree, name="other", seed=5, harvest__cache="shared", sae={**tree["sae"][0], "k": 2})
    assert run_here("train", other).returncode == 0
    assert summary(tmp_path / "runs" / "other")["seconds"]["harvest"] == 0, "another dictionary, the same activations"
    deeper = write_config(
        tmp_path, tree, name="deeper", harvest__cache="shared", sae={**tree["sae"][0], "hook": "mlp_out.2"}
    )
    assert run_here("train", deeper).returncode == 0
    assert summary(tmp_path / "runs" / "deeper")["seconds"]["harvest"] > 0 and len(list(home.iterdir())) == 2


def test_a_damaged_file_is_told_of_and_harvested_again(tmp_path, tree, undisturbed, home):
    config = write_config(tmp_path, tree, name="one", harvest__cache="shared")
    assert run_here("train", config).returncode == 0
    files = sorted(home.glob("*/contexts-*.safetensors"))
    held = files[0].read_bytes()
    files[0].write_bytes(held[:-9] + bytes(b ^ 1 for b in held[-9:]))
    files[1].write_bytes(files[1].read_bytes()[:100])
    done = run_here("train", write_config(tmp_path, tree, name="two", harvest__cache="shared"))
    assert done.returncode == 0 and done.stderr.count("damaged;") == 2
    assert files[0].read_bytes() == held
    for key, value in weights(tmp_path / "runs" / "two").items():
        assert torch.equal(value, weights(undisturbed)[key]), key


def test_two_runs_at_once_harvest_every_range_once(tmp_path, tree, home):
    configs = [
        write_config(tmp_path / name, tree, name=name, harvest__cache="shared", harvest__cache_dtype="int8")
        for name in ("one", "two")
        if not (tmp_path / name).mkdir()
    ]
    both = [SaeProcess("train", config) for config in configs]
    for process in both:
        assert process.wait() == 0, process.printed
    runs = [tmp_path / name / "runs" / name for name in ("one", "two")]
    for key, value in weights(runs[0]).items():
        assert torch.equal(value, weights(runs[1])[key]), key
    traffic = [summary(run)["cache"] for run in runs]
    n_tokens = json.loads((runs[0] / "dictionaries" / "first" / "card.json").read_text())["filters"]["positions_read"]
    assert sum(t["written"] for t in traffic) == n_tokens, "nothing is harvested twice"
    assert sum(traffic[1].values()) == sum(traffic[0].values()) > 2 * n_tokens, "the index reads everything again"
    assert len(list(home.iterdir())) == 1
    assert not list(home.glob("*/*.writing"))


def test_8_bit_activations_train_to_nearly_the_same(tmp_path, tree, undisturbed, home):
    done = run_here("train", write_config(tmp_path, tree, harvest__cache="shared", harvest__cache_dtype="int8"))
    assert done.returncode == 0, done.stderr
    found, exact = (
        json.loads((run / "dictionaries" / "first" / "metrics.json").read_text())["fvu"]
        for run in (tmp_path / "runs" / "tiny", undisturbed)
    )
    assert found != exact and abs(found / exact - 1) < 0.05


def test_what_is_shared_is_listed_and_removed(tmp_path, tree, home):
    assert "no shared activations" in run_here("cache").stdout
    assert run_here("train", write_config(tmp_path, tree, harvest__cache="shared")).returncode == 0
    ((folder, size, _, facts),) = shared_caches()
    listed = run_here("cache").stdout
    assert folder.name in listed and "resid_post.1" in listed and facts["stored"] in listed
    with pytest.raises(ConfigError, match=folder.name):
        remove("nothing")
    with FileLock(next(folder.glob("contexts-*.lock"))), pytest.raises(ConfigError, match="a run is using"):
        remove("all")
    assert run_here("cache", "--remove", "nothing").returncode != 0 and folder.exists()
    assert remove("all") == size > 0 and not folder.exists()


def test_no_room_is_said_before_anything_is_harvested(tmp_path, tree, monkeypatch):
    from sae.stream import activation_cache

    monkeypatch.setattr(activation_cache.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    config = write_config(tmp_path, tree, harvest__cache=True)
    assert run_here("train", config).returncode == ConfigError.exit_code
    assert not list((tmp_path / "runs" / "tiny" / "activations").glob("contexts-*"))


def test_the_name_of_a_file_says_where_contexts_begin(tmp_path):
    ids = np.arange(4096, dtype=np.uint16)
    cache = ActivationCache(tmp_path, None)  # pyright: ignore[reportArgumentType]
    names = {cache.path(ids.reshape(-1, n), np.zeros((4096 // n, n), np.uint32)) for n in (32, 64, 128)}
    assert len(names) == 3


def test_many_processes_begin_a_shared_cache_at_once(tmp_path, home, monkeypatch):
    monkeypatch.setattr("sae.stream.activation_cache._facts", lambda *a: {"a": 1})
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda _: ActivationCache.shared(None, 8, is_int8=False, progress=Progress()).folder, range(40))
        )  # pyright: ignore
    assert len(set(found)) == 1 and json.loads((found[0] / "facts.json").read_text()) == {"a": 1}


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), width=st.integers(1, 300), loud=st.floats(0.001, 1000))
def test_8_bit_codes_are_within_half_a_step(seed, width, loud):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, width, generator=generator)
    x[:, 0] *= loud
    x[3] = 0
    packed = PackedRows.of(x.bfloat16())
    step = packed.row[:, None] * packed.column
    assert ((packed.rows().float() - x.bfloat16().float()).abs() <= step / 2 + x.abs() / 128).all()
    others = slice(1, None) if width > 1 else slice(None)
    error = (packed.rows().float() - x.bfloat16().float())[:, others].square().sum()
    assert error <= 0.0005 * x[:, others].square().sum(), "a loud column takes nothing from the others"
