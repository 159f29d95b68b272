"""Semi-nonnegative factors: what must always hold, planted factors, the streamed way beside the plain one, and the command."""

from __future__ import annotations

import signal
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from fixtures import copy_run, run_here
from preloaded import Stop, exists, run_cli
from scipy.optimize import nnls

from feature_store.results.findings import Finding
from sae.apply.factors.dictionary import as_dictionary, parents_of
from sae.apply.factors.factorisation import (
    StreamingFit,
    factorise,
    factorise_stream,
    strongest_only,
    updated,
    weights_of,
)
from sae.model.hookpoints import HookPoint
from sae.publish import dictionary


def planted(n=3000, rank=8, d=40, n_numbers=4, seed=0):
    """Activations that are sums of few sparse factors, and the factors."""
    generator = torch.Generator().manual_seed(seed)
    rows = strongest_only(torch.randn(rank, d, generator=generator), n_numbers / d)
    rows = torch.nn.functional.normalize(rows, dim=1)
    g = torch.rand(n, rank, generator=generator) * (torch.rand(n, rank, generator=generator) < 0.3)
    return g @ rows + 0.01 * torch.randn(n, d, generator=generator), rows


def matched(found, true):
    """The cosine of every true factor with the nearest one that was found."""
    return (torch.nn.functional.normalize(true, dim=1) @ found.T).max(1).values


def test_an_update_never_raises_the_error_nor_makes_a_weight_negative():
    generator = torch.Generator().manual_seed(1)
    x, rows = torch.randn(50, 20, generator=generator), torch.randn(6, 20, generator=generator)
    g = torch.rand(50, 6, generator=generator)
    errors = []
    for _ in range(40):
        errors.append(float((x - g @ rows).square().sum()))
        g = updated(g, x @ rows.T, rows @ rows.T)
        assert (g >= 0).all()
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(errors))


def test_weights_are_the_least_squares_ones_that_are_not_negative():
    x, rows = planted()
    g = weights_of(x[:30], rows + 0.1, 3000)
    for row, weights in zip(x[:30].double().numpy(), g.numpy(), strict=True):
        _, error = nnls((rows + 0.1).double().numpy().T, row)
        reached = np.linalg.norm(row - weights @ (rows + 0.1).double().numpy())
        assert reached <= error + 1e-3


def test_without_sparsity_the_loss_never_rises_and_with_it_factors_are_sparse():
    x, _ = planted(600)
    dense = factorise(x, 8, iterations=60)
    assert all(after <= before + 1e-6 for before, after in pairwise(dense.losses))
    sparse = factorise(x, 8, 0.1, iterations=60)
    assert ((sparse.rows != 0).sum(1) <= 4).all() and torch.allclose(sparse.rows.norm(dim=1), torch.ones(8))
    assert torch.equal(sparse.rows, factorise(x, 8, 0.1, iterations=60).rows)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_streamed_way_finds_planted_factors_like_the_plain_one(seed):
    x, true = planted(seed=seed)
    plain = factorise(x, 12, 0.1, iterations=300, seed=seed)
    stream = factorise_stream(lambda: x.split(500), StreamingFit(12, 0.1, passes=12, seed=seed))
    assert matched(plain.rows, true).median() > 0.95 and matched(stream.rows, true).median() > 0.95
    assert stream.losses[-1] < 1.5 * plain.losses[-1] + 0.02 and stream.losses[-1] < stream.losses[0]
    assert ((stream.rows != 0).sum(1) <= 4).all() and (stream.energy >= 0).all()
    again = factorise_stream(lambda: x.split(500), StreamingFit(12, 0.1, passes=12, seed=seed))
    assert torch.equal(stream.rows, again.rows)


def test_a_dictionary_of_factors_reads_most_of_the_weights():
    x, _ = planted()
    factors = factorise_stream(lambda: x.split(500), StreamingFit(8, 0.1, passes=12))
    sae, unexplained = as_dictionary(factors, lambda: x.split(500), name="f", hook=HookPoint("mlp_hidden", 1))
    assert unexplained < 0.3 and torch.equal(sae.W_dec, factors.rows)
    with torch.no_grad():
        error = float((x - sae(x)).square().sum() / (x - x.mean(0)).square().sum())
    assert error < 0.3
    g = weights_of(x, factors.rows)
    guess = (x @ sae.W_enc + sae.b_enc).detach()
    direct = float((guess - g).square().sum() / (g - g.mean(0)).square().sum())
    assert unexplained == pytest.approx(direct, abs=1e-3)


@pytest.mark.parametrize("stop_after", [1, 4, 6, 7, 17])
def test_a_fit_that_was_stopped_ends_in_the_same_bits(stop_after):
    x, _ = planted()
    undisturbed = factorise_stream(lambda: x.split(500), StreamingFit(12, 0.1, passes=3))
    states = []

    class Stopped(Exception):
        pass

    def keep(fit):
        if len(states) == stop_after:
            raise Stopped
        states.append({name: tensor.clone() for name, tensor in fit.state().items()})

    with pytest.raises(Stopped):
        factorise_stream(lambda: x.split(500), StreamingFit(12, 0.1, passes=3), tell=keep)
    fit = StreamingFit(12, 0.1, passes=3)
    fit.resume(states[-1])
    again = factorise_stream(lambda: x.split(500), fit)
    assert torch.equal(again.rows, undisturbed.rows) and torch.equal(again.energy, undisturbed.energy)
    assert again.losses == undisturbed.losses and len(again.losses) == 3


def test_parents_join_factors_that_are_alike():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 30, generator=generator)
    rows = torch.nn.functional.normalize(
        centres.repeat_interleave(4, 0) + 0.1 * torch.randn(12, 30, generator=generator), dim=1
    )
    parents = parents_of(rows)
    assert [len(set(parents[start : start + 4])) for start in (0, 4, 8)] == [1, 1, 1] and len(set(parents)) == 3


def test_factors_of_a_run_are_a_dictionary_that_can_be_indexed(finished, tmp_path, text_file):
    run, out = copy_run(finished, tmp_path / "tiny"), tmp_path / "factors"
    done = run_here(
        "factor", run, "--hook", "mlp_hidden.1", "--rank", "12", "--share", "0.2", "--tokens", "4000", "--out", out
    )
    assert done.returncode == 0, done.stderr
    finding = Finding.read(out / "findings/factors")
    assert len(finding.tables[0].rows) == 12 and 0 < finding.figures[0].value < 1  # pyright: ignore[reportOperatorIssue]
    sae = dictionary.load(out)
    assert sae.W_dec.shape == (12, 64) and ((sae.W_dec != 0).sum(1) <= 13).all()
    done = run_here(
        "index",
        out,
        "--model",
        run,
        "--text",
        text_file,
        "--tokens",
        "4000",
        "--runs",
        tmp_path / "opened",
        "--name",
        "f",
        "--accept-misfit",
    )
    assert done.returncode == 0, done.stderr
    (opened,) = (tmp_path / "opened/f/dictionaries").iterdir()
    assert (opened / "labels.json").is_file() and (opened / "store").is_dir()


@pytest.mark.parametrize(
    ("more", "words"),
    [(("--hook", "mlp.1"), "a hook point is site.layer"), (("--hook", "mlp_hidden.1", "--rank", "1"), "2 factors or")],
)
def test_one_line_for_bad_settings(finished, tmp_path, more, words):
    done = run_here("factor", finished, "--out", tmp_path / "x", *more)
    assert done.returncode != 0 and words in done.stderr and not (tmp_path / "x").exists()


def test_a_killed_fit_goes_on_and_ends_in_the_same_bits(finished, tmp_path):
    run = copy_run(finished, tmp_path / "tiny")
    options = (
        "factor",
        run,
        "--hook",
        "mlp_hidden.1",
        "--rank",
        "8",
        "--share",
        "0.2",
        "--tokens",
        "4000",
        "--passes",
        "20",
    )
    assert run_here(*options, "--out", tmp_path / "undisturbed").returncode == 0

    keeps = partial(exists, run, ".factor-*.safetensors")
    assert not keeps()
    killed = run_cli(*options, "--out", tmp_path / "resumed", stop=Stop(keeps))
    assert killed.returncode == -signal.SIGKILL and keeps() and not (tmp_path / "resumed").exists()
    [state] = run.glob(".factor-*.safetensors")
    damaged = state.read_bytes()
    state.write_bytes(damaged[:40])
    refused = run_here(*options, "--out", tmp_path / "resumed")
    assert refused.returncode != 0 and "damaged" in refused.stderr
    state.write_bytes(damaged)
    assert run_here(*options, "--out", tmp_path / "resumed").returncode == 0 and not keeps()
    one, other = (dictionary.load(tmp_path / name) for name in ("undisturbed", "resumed"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
