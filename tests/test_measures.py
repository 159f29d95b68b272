"""Measures: what each must give where the answer is known, and that every one runs on a finished run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fixtures import copy_run, run_here

from sae.evaluation.measures import MEASURES
from sae.evaluation.measures.probing import probe_auc, select_latents
from sae.evaluation.measures.quasi_orthogonality import epsilon_lbo
from sae.evaluation.measures.stability import matched_cosines
from sae.foundation.metrics import normalised_mse, spearman
from sae.publish import dictionary


def test_epsilon_is_zero_for_an_orthonormal_decoder_and_exact_codes():
    directions = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0))).Q[:10]
    acts = torch.rand(50, 10, generator=torch.Generator().manual_seed(1))
    epsilon, norm = epsilon_lbo(acts @ directions, acts, torch.ones(50, 10), torch.zeros(16), d_sae=10)
    torch.testing.assert_close(norm, acts.norm(dim=1))
    assert epsilon.max() < 1e-6


def test_epsilon_ignores_how_scale_is_split_and_counts_the_bias_once():
    acts, norms = torch.rand(20, 5), torch.rand(20, 5) + 0.5
    x, bias = torch.randn(20, 8), torch.randn(8)
    plain = epsilon_lbo(x, acts, norms, bias, d_sae=64)
    split = epsilon_lbo(x, acts / 3, norms * 3, bias, d_sae=64)
    torch.testing.assert_close(plain[0], split[0])
    square = (acts * norms).square().sum(1) + bias.square().sum()
    torch.testing.assert_close(plain[1].square(), square)
    torch.testing.assert_close(plain[0], (x.square().sum(1) - square).abs() / (63 * square))


def test_matching_finds_a_permutation_and_uses_every_row_once():
    rows = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
    shuffled = rows[torch.randperm(30, generator=torch.Generator().manual_seed(1))] * 2
    torch.testing.assert_close(matched_cosines(rows, shuffled), torch.ones(30))
    assert matched_cosines(rows, torch.cat([rows[:15], -rows[15:]])).mean() < 0.9


def test_formulas():
    x = torch.randn(40, 6)
    torch.testing.assert_close(normalised_mse(x, torch.zeros_like(x)), torch.ones(40))
    assert spearman(torch.tensor([1.0, 2, 3, 4]), torch.tensor([10.0, 20, 30, 40])) == pytest.approx(1)
    assert spearman(torch.tensor([1.0, 2, 3, 4]), torch.tensor([4.0, 3, 2, 1])) == pytest.approx(-1)


def test_probes_choose_the_latent_that_tells_the_classes_apart():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    latents = rng.random((100, 20)) * (rng.random((100, 20)) < 0.3)
    latents[:, 7] = labels * (1 + rng.random(100))
    assert select_latents(latents, labels, 1).tolist() == [7]
    pytest.importorskip("sklearn")
    assert probe_auc(latents[:, [7]], labels, latents[:, [7]], labels) == 1.0


@pytest.fixture(scope="module")
def copy(finished, tmp_path_factory):
    """A copy of the finished run, to measure in."""
    return copy_run(finished, tmp_path_factory.mktemp("measured") / "run")


def test_every_measure_but_the_downloaded_one_runs_on_a_finished_run(copy):
    names = [name for name in MEASURES if name != "probing"]
    folder = copy / "dictionaries" / "first"
    before = json.loads((folder / "metrics.json").read_text())
    other = copy / "dictionaries" / "second"
    done = run_here("eval", folder, "--measures", ",".join(names), "--against", other)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["fvu"] == pytest.approx(before["fvu"], rel=1e-4)  # the same held-out text again
    assert metrics["ce_increase"] == pytest.approx(before["ce_increase"], abs=1e-4)
    assert set(metrics["measured"]) >= set(names) - {"heads"}
    assert metrics["epsilon_lbo"]["median"] > 0 and (folder / "zf.png").stat().st_size > 1000
    assert 0 < metrics["meta_structure"]["random_rows"] < 1
    attribution = metrics["attribution"]  # the gradient tells which latents matter far better than the activation alone
    assert attribution["ablations"] > 100
    assert attribution["spearman_gradient"] > attribution["spearman_activation"] + 0.2
    assert metrics["steering"]["latents"] > 0
    stability, cosines = metrics["stability"], matched_cosines(*(dictionary.load(f).W_dec for f in (folder, other)))
    assert stability["against"] == ["second"]
    assert stability["found_again"] == pytest.approx(float((cosines >= 0.7).double().mean()))
    assert stability["mean_cosine"] == pytest.approx(float(cosines.mean()))
    assert metrics["description_length"]["entropic_bits"] > 0
    report = (folder / "report.md").read_text()
    assert "epsilon_lbo.median" in report and "![zf.png](zf.png)" in report


def test_a_dictionary_finds_all_of_itself_again(copy):
    folder = copy / "dictionaries" / "second"
    done = run_here("eval", folder, "--measures", "stability", "--against", folder)
    assert done.returncode == 0, done.stderr
    stability = json.loads((folder / "metrics.json").read_text())["stability"]
    assert stability["found_again"] == 1 and stability["mean_cosine"] == pytest.approx(1)
    assert stability["random_rows"] < 0.6


def test_percentiles_of_l0_and_densities_agree_with_l0(finished):
    metrics = json.loads((finished / "dictionaries" / "second" / "metrics.json").read_text())
    edges, latents = (np.array(metrics["density_histogram"][key]) for key in ("log10_edges", "latents"))
    assert latents.sum() + metrics["silent_on_held_out"] == metrics["d_sae"]
    # l0 is the sum of densities; the histogram tells each within its bin.
    least, most = (float((latents * 10.0**side).sum()) for side in (edges[:-1], edges[1:]))
    assert 0 < least <= metrics["l0"] <= most
    percentiles = metrics["l0_percentiles"]
    assert percentiles["0"] <= percentiles["50"] <= percentiles["100"] <= 8
    assert percentiles["0"] <= metrics["l0"] <= percentiles["100"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{first}", "--measures", "splices"], "no measure 'splices'; allowed measures are"),
        (["{nowhere}"], "neither a dictionary folder"),
    ],
)
def test_wrong_questions_get_one_clear_line(finished, tmp_path, arguments, message):
    places = {"first": finished / "dictionaries" / "first", "nowhere": tmp_path}
    done = run_here("eval", *[a.format(**places) for a in arguments])
    assert done.returncode == 2 and message in done.stderr, done.stderr


def test_the_command_line_names_every_measure():
    from sae.commands.command import plugin_names

    assert set(MEASURES) == set(plugin_names("sae.evaluation.measures"))
