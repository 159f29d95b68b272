"""Measures: what each must give where the answer is known, and that every one runs on a finished run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fixtures import copy_run, run_here

from feature_store.results.findings import Finding
from sae.apply.probes.abstaining import telling_columns
from sae.evaluation.measures import MEASURES
from sae.evaluation.measures.causal_audit import row_effect, split
from sae.evaluation.measures.functional_importance import jacobian_gram
from sae.evaluation.measures.probing import probe_auc
from sae.evaluation.measures.quasi_orthogonality import epsilon_lbo
from sae.evaluation.measures.scrambling import scrambled, with_shuffled_sentences
from sae.evaluation.measures.stability import matched_cosines
from sae.foundation.metrics import normalised_mse, spearman
from sae.foundation.screen import Screen
from sae.pipeline.reading import reader_of
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
    assert telling_columns(latents, labels, 1).tolist() == [7]
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
    assert set(metrics["measured"]) >= set(names) - {"heads", "head_attribution", "causal_audit"}
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


def test_directions_are_split_by_what_the_output_weights_can_move():
    generator = torch.Generator().manual_seed(0)
    w_out = torch.randn(8, 20, generator=generator)
    directions = torch.randn(6, 20, generator=generator)
    parts = split(directions, w_out)
    torch.testing.assert_close(parts.row + parts.null, directions)
    assert (parts.null @ w_out.T).abs().max() < 1e-4
    torch.testing.assert_close(parts.row @ w_out.T, directions @ w_out.T, atol=1e-4, rtol=1e-4)
    assert split(w_out[:3].clone(), w_out).null_share.max() < 1e-5
    many = split(torch.randn(500, 20, generator=generator), w_out)
    assert many.null_share.mean() == pytest.approx(12 / 20, abs=0.03)  # the null space has 12 of 20 dimensions


def test_a_direction_that_reads_where_nothing_moves_is_flagged():
    """Makelov's illusion: the concept lies in the null space, and an idle direction in the row space does the work."""
    w_out = torch.zeros(4, 10)
    w_out[:, :4] = torch.eye(4)
    concept, idle, honest = torch.zeros(3, 10)
    concept[7], idle[1], honest[2] = 1, 1, 1
    directions = torch.stack([concept + idle, honest])
    differences = torch.stack([3 * concept, 3 * honest + 0.1 * concept])
    parts = split(directions, w_out)
    effect = row_effect(directions, parts, differences)
    assert effect[0] == pytest.approx(0, abs=1e-6) and effect[1] == pytest.approx(1)
    # Patching along the whole direction moves the output though the row space holds nothing of the concept.
    unit = torch.nn.functional.normalize(directions[0], dim=0)
    assert ((unit @ differences[0]) * (w_out @ unit)).norm() > 1


def test_the_audit_of_a_hidden_layer_writes_a_finding(hidden, tmp_path):
    run = copy_run(hidden, tmp_path / "tiny")
    assert run_here("eval", run, "--measures", "causal_audit,scrambling").returncode == 0
    folder = run / "dictionaries/first"
    figures = json.loads((folder / "metrics.json").read_text())
    audit = figures["causal_audit"]
    assert 0 < audit["null_share"] < 1 and audit["random_null_share"] == pytest.approx(0.5, abs=0.05)  # 32 of 64
    assert audit["kl_null"] < 1e-6 < audit["kl_whole"]
    assert audit["kl_row"] == pytest.approx(audit["kl_whole"], rel=1e-3)  # what lies in the null space adds nothing
    finding = Finding.read(folder / "findings/causal_audit")
    assert finding.tables[0].rows[0][1] <= finding.tables[0].rows[-1][1]
    active = figures["scrambling"]["active"]
    assert list(active) == ["whole", "sentences", "blocks_16", "blocks_4", "blocks_1", "random"] and active["whole"] > 0


def test_shuffled_blocks_hold_the_same_tokens():
    ids = np.arange(60).reshape(3, 20)
    rng = np.random.default_rng(0)
    for block in (1, 4, 16):
        out = scrambled(ids, block, rng)
        assert (out[:, 0] == ids[:, 0]).all() and (np.sort(out, axis=1) == ids).all()
        inside = np.diff(out[:, 1:], axis=1) == 1
        assert inside.sum() >= 3 * (19 - -(-19 // block)) and (out != ids).any()


def test_shuffled_sentences_stay_whole():
    class Words:
        def decode(self, ids):
            return [" a", " b", " c.", ' d?"', " e"][ids[0]]

    ids = np.array([[4, 0, 1, 2, 4, 3, 0, 0, 2, 1], [4, 0, 0, 0, 0, 0, 0, 0, 0, 2]])
    rng, orders = np.random.default_rng(0), set()
    for _ in range(30):
        out = with_shuffled_sentences(ids, Words(), rng)
        orders.add(tuple(out[0]))
        assert (out[1] == ids[1]).all() and out[0, 0] == 4
        text = "".join(map(str, out[0, 1:]))
        assert all(sentence in text for sentence in ("012", "43", "002", "1")) and len(text) == 9
    assert len(orders) > 8 and (ids[0, 1:4] == [0, 1, 2]).all()


def test_importance_is_the_size_of_the_jacobian_times_the_direction(hidden, tmp_path):
    """Held to the whole Jacobian of a short context, token by token."""
    reader = reader_of(hidden / "dictionaries" / "first", None, Screen())
    harvester, hook = reader.harvester, reader.sae.config.hook
    reader.lm.cast(torch.float32)
    ids = np.random.default_rng(0).integers(10, 90, (1, 5))
    gram = jacobian_gram(harvester, hook, ids, torch.Generator().manual_seed(0), draws=3000)
    seen, tokens = [], torch.from_numpy(ids).to(reader.lm.device)

    def last_of(h):
        handle = harvester.places[hook].watch(lambda x: h.reshape(x.shape))
        try:
            return reader.lm.last_stream(tokens)
        finally:
            handle.remove()

    handle = harvester.places[hook].watch(lambda x: seen.append(x.detach().clone()))
    reader.lm.last_stream(tokens)
    handle.remove()
    jacobian = torch.autograd.functional.jacobian(last_of, seen[0].reshape(5, -1)).reshape(-1, 5, gram.gram.shape[0])
    keep = harvester.keep(tokens, np.zeros_like(ids))[0]
    directions = torch.nn.functional.normalize(torch.randn(6, gram.gram.shape[0]), dim=1).to(tokens.device)
    exact = torch.stack([(jacobian[:, t] @ directions.T).square().sum(0) for t in range(5) if keep[t]]).mean(0).sqrt()
    assert gram.n_tokens == int(keep.sum()) and 1 < gram.effective_dimensions() < len(gram.gram)
    torch.testing.assert_close(gram.sizes(directions).float(), exact.detach(), rtol=0.1, atol=1e-4)


def test_importance_of_a_run_is_a_finding(hidden, tmp_path):
    run = copy_run(hidden, tmp_path / "tiny")
    done = run_here("eval", run, "--measures", "functional_importance")
    assert done.returncode == 0, done.stderr
    folder = run / "dictionaries/first"
    figures = json.loads((folder / "metrics.json").read_text())["functional_importance"]
    assert figures["median"] > 0 and figures["spearman"] > 0.5 and figures["removed"] > 50
    most, least = Finding.read(folder / "findings/functional_importance").tables
    assert most.rows[0][1] >= most.rows[-1][1] and most.rows[0][1] >= least.rows[0][1]
