"""Controls: directions that nothing was learned for are scored beside a dictionary, and are what a label must beat."""

from __future__ import annotations

import json
from contextlib import closing

import numpy as np
import pytest
import torch
from fixtures import copy_run, make, rows
from preloaded import run_cli

from feature_store.dictionary_files import LabelSummary, Metrics
from feature_store.store import Store
from sae.foundation.distributed import ALONE
from sae.foundation.screen import Progress
from sae.interpret.control_labels import control_labels
from sae.interpret.evidence import Evidence
from sae.interpret.explanation_table import ExplanationTable
from sae.interpret.interpret import InterpretConfig, _label, _no_model
from sae.publish import controls
from sae.publish.controls import CONTROLS, principal_directions, sampled_code


def scores_of(store_folder):
    """F2 of all labels of a store, labelled without publishing."""
    with closing(Store(store_folder)) as store:
        evidence, table = Evidence(store), ExplanationTable(store.meta["seed"])
        config = InterpretConfig(scorers=())
        _label(
            evidence,
            table,
            evidence.to_label(),
            config,
            live_dictionary=_no_model,
            processes=ALONE,
            progress=Progress(),
        )
    chosen = {row.id for row in table.explanations if row.chosen}
    rows = [row for row in table.scores if row.explanation in chosen and row.score.metric == "f2"]
    return table, [row.score.value for row in rows if row.score.value is not None]


def test_every_dictionary_is_shown_beside_controls(finished):
    folder = finished / "dictionaries" / "first"
    summary, metrics = LabelSummary.read(folder), Metrics.read(folder)
    assert set(summary.controls) == set(CONTROLS) == set(metrics.controls)
    assert 0 <= summary.share_beating_control <= 1 and summary.floor is not None
    for figures in summary.controls.values():
        assert figures.features_labelled > 20 and 0 < figures.median_balanced_accuracy < 1
    for figures in metrics.controls.values():
        assert figures.keys() >= {"fvu", "fvu_typical", "ce_increase", "loss_recovered"}
        assert figures["l0"] == pytest.approx(metrics.l0, abs=1)
    report = (folder / "report.md").read_text()
    assert "| figure | value | random | principal | meaning |" in report and metrics.text in report


@pytest.mark.parametrize(("k", "n"), [(28, 16_384), (32, 131_072), (3, 8_192), (7, 5_000), (32, 4_096), (1, 1 << 20)])
def test_a_thinned_control_fires_as_often(k, n):
    fewer, rest = controls._thinned(k, n)
    assert fewer / rest == pytest.approx(k / n, rel=1e-3)
    assert rest <= 4_096 + n / k + 1 and (n > 4_096 or (fewer, rest) == (k, n))


def test_single_directions_of_a_thinned_control_are_as_those_of_a_whole_one(monkeypatch):
    sae, x = make("relu", d_sae=4096), 2 * rows(4000)
    monkeypatch.setattr(controls, "_typical_rows", lambda *_: x)
    monkeypatch.setattr(controls, "ENOUGH", 1024)
    figures = []
    for thinned in (False, True):
        control = controls.control_of(sae, "random", None, 64, seed=0, thinned=thinned).control
        acts = control.encode(x).top_acts.detach()
        figures.append((acts > 0).sum() / (len(x) * control.d_sae))
        figures.append(acts[acts > 0].mean())
    assert figures[2] == pytest.approx(float(figures[0]), rel=0.01) and control.d_sae == 1024
    assert figures[3] == pytest.approx(float(figures[1]), rel=0.02)


def test_five_percent_of_a_controls_own_labels_exceed_the_floor(finished):
    table, scores = scores_of(finished / "dictionaries" / "first" / "controls" / "random" / "store")
    floor = control_labels(table, len(table.labels)).floor
    above = sum(score > floor for score in scores)
    assert above <= 0.05 * len(scores) and sum(score >= floor for score in scores) >= 0.05 * len(scores)
    assert floor == LabelSummary.read(finished / "dictionaries" / "first").floor


def test_other_random_directions_rarely_exceed_the_floor(finished):
    """The features of a control are independent of each other, so one half is another random dictionary to the other."""
    _, scores = scores_of(finished / "dictionaries" / "first" / "controls" / "random" / "store")
    shares = []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(scores)
        half = len(order) // 2
        floor = np.quantile(order[:half], 0.95, method="higher")
        shares.append((order[half:] > floor).mean())
    assert 0.005 < np.mean(shares) < 0.1


def test_principal_directions_are_the_eigenvectors_with_both_signs():
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.1])
    rows = principal_directions(x)
    assert rows.shape == (6, 3) and torch.equal(rows[:3], -rows[3:])
    assert rows[:3].abs().argmax(1).tolist() == [1, 0, 2]
    torch.testing.assert_close(rows[:3] @ rows[:3].T, torch.eye(3), atol=1e-5, rtol=0)


def test_a_sampled_code_holds_the_firings_of_the_sample_alone():
    generator = torch.Generator().manual_seed(1)
    acts = torch.randn(50, 4, generator=generator).clamp_min(0)
    indices = torch.stack([torch.randperm(20, generator=generator)[:4] for _ in range(50)])
    number = torch.full((20,), -1)
    number[[3, 7, 11]] = torch.arange(3)
    narrow_acts, narrow = sampled_code(acts, indices, number)
    dense, expected = torch.zeros(50, 3), torch.zeros(50, 20).scatter_(1, indices, acts)[:, [3, 7, 11]]
    dense.scatter_add_(1, narrow, narrow_acts)
    assert torch.equal(dense, expected) and narrow.shape[1] <= 3


def test_a_dictionary_is_measured_on_any_text(finished, tmp_path):
    letters = np.random.default_rng(0).integers(97, 123, 20_000).astype(np.uint8).tobytes().decode()
    run = tmp_path / "run"
    copy_run(finished, run)
    (tmp_path / "noise.txt").write_text(" ".join(letters[i : i + 5] for i in range(0, 20_000, 5)))
    done = run_cli("eval", run, "--text", f"noise={tmp_path / 'noise.txt'}")
    assert done.returncode == 0 and "first on noise: fvu" in done.stdout
    metrics = json.loads((run / "dictionaries" / "first" / "metrics.json").read_text())
    noise = metrics["texts"]["noise"]
    assert noise["fvu"] > metrics["fvu"] and noise["tokens"] > 1000
    assert "| noise |" in (run / "dictionaries" / "first" / "report.md").read_text()
    refused = run_cli("eval", run, "--text", "installed-docs", "--measures", "reconstruction")
    assert refused.returncode == 2 and "Leave out --measures" in refused.stderr
