"""One suite over every architecture in the folder: a new file is tested without writing a test."""

from __future__ import annotations

import pytest
import torch

from sae.architectures import ARCHITECTURES, build
from sae.metrics import FvuMeter, density, geometric_median, l0, loss_recovered

D_MODEL, D_SAE, K = 12, 48, 5


def make(name, dtype=torch.float32, **more):
    config_class = ARCHITECTURES[name].config_class
    settings = {"name": "x", "hook": "resid_post.0", "d_sae": D_SAE, "k": K, "dead_after_tokens": 100, **more}
    sae = build(config_class(architecture=name, **settings), D_MODEL, dtype)
    sae.initialise(torch.Generator().manual_seed(1), torch.randn(D_MODEL, generator=torch.Generator().manual_seed(2)))
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    return sae


def rows(n=64, seed=5):
    return torch.randn(n, D_MODEL, generator=torch.Generator().manual_seed(seed)) * 2


every = pytest.mark.parametrize("name", list(ARCHITECTURES))


@every
def test_encode_is_sparse_and_decodes(name):
    sae, x = make(name), rows()
    encoding = sae.encode(x)
    assert (encoding.top_acts >= 0).all()
    assert encoding.top_indices.max() < D_SAE
    dense = torch.zeros(len(x), D_SAE).scatter_add(1, encoding.top_indices, encoding.top_acts)
    torch.testing.assert_close(sae.decode(encoding), dense @ sae.W_dec + sae.b_dec)
    torch.testing.assert_close(sae(x), sae.decode(encoding))


@every
def test_initialisation_is_tied_and_of_unit_norm(name):
    sae = make(name)
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))


@every
def test_permuting_latents_permutes_the_code_only(name):
    sae, other, x = make(name), make(name), rows()
    order = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        other.W_enc.copy_(sae.W_enc[:, order])
        other.W_dec.copy_(sae.W_dec[order])
        other.b_enc.copy_(sae.b_enc[order])
    torch.testing.assert_close(sae(x), other(x), rtol=1e-5, atol=1e-5)


@every
def test_loss_gradients_equal_finite_differences(name):
    sae, x = make(name).double(), rows(6).double()
    sae.selection_dtype = torch.float64
    variance = torch.tensor(3.0, dtype=torch.float64)
    parameters = [sae.W_dec, sae.b_enc, sae.b_dec]

    def loss(*values):
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value.data
        encoding = sae.encode(x)
        return (x - sae.decode(encoding)).square().sum(1).mean() / variance

    total = loss(*parameters)
    grads = torch.autograd.grad(total, [*parameters, sae.W_enc])
    for parameter, grad in zip([*parameters, sae.W_enc], grads, strict=True):
        index = tuple(0 for _ in parameter.shape)
        before = parameter.data[index].item()
        values = []
        for step in (1e-6, -1e-6):
            parameter.data[index] = before + step
            values.append(loss(*parameters).item())
        parameter.data[index] = before
        assert grad[index].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-8)


@every
def test_aux_loss_is_zero_while_all_live_and_reaches_dead_encoders(name):
    sae, x = make(name), rows()
    variance = torch.tensor(1.0)
    losses = sae.losses(x, variance)
    assert losses.aux.item() == 0.0
    sae.tokens_since_fired[:10] = 100
    losses = sae.losses(x, variance)
    losses.aux.backward()
    assert (sae.W_enc.grad[:, :10] != 0).any()
    assert (sae.W_enc.grad[:, 10:] == 0).all()
    assert (sae.b_dec.grad is None) or torch.isfinite(sae.b_dec.grad).all()


@every
def test_aux_loss_moves_towards_the_error(name):
    sae, x = make(name), rows(256)
    sae.tokens_since_fired[:10] = 100
    optimiser = torch.optim.Adam(sae.parameters(), lr=0.01)
    error = (x - sae(x)).detach()
    first = sae.aux_loss(x, error).item()
    for _ in range(20):
        optimiser.zero_grad()
        sae.aux_loss(x, error).backward()
        optimiser.step()
    assert sae.aux_loss(x, error).item() < first


@every
def test_a_selected_latent_with_activation_zero_has_not_fired(name):
    sae = make(name)
    sae.tokens_since_fired[:] = 7
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    encoding = sae.encode(rows(10))
    sae.count_firings(encoding)
    assert (encoding.top_acts == 0).all()
    assert (sae.tokens_since_fired == 17).all()


@every
def test_decoder_stays_of_unit_norm_and_gradient_is_tangent(name):
    sae, x = make(name), rows()
    sae.losses(x, torch.tensor(1.0)).total.backward()
    sae.project_decoder_gradient()
    assert ((sae.W_dec.grad * sae.W_dec).sum(1).abs() < 1e-5).all()
    with torch.no_grad():
        sae.W_dec += 0.1 * sae.W_dec.grad
    sae.normalise_decoder()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))


@every
@pytest.mark.parametrize("scale", [0.03, 7.0])
def test_folding_the_scale_gives_the_same_dictionary(name, scale):
    sae, x = make(name), rows()
    before = sae(x * scale) / scale
    acts = sae.encode(x * scale).top_acts / scale
    sae.fold_scale(scale)
    torch.testing.assert_close(sae(x), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.encode(x).top_acts, acts, rtol=1e-4, atol=1e-4)


@every
def test_bfloat16_selection_keeps_float32_values(name):
    exact, rounded, x = make(name), make(name, torch.bfloat16), rows()
    a, b = exact.encode(x), rounded.encode(x)
    same = (a.top_indices == b.top_indices).all(dim=1)
    assert same.float().mean() > 0.5
    torch.testing.assert_close(a.top_acts[same], b.top_acts[same])


def test_topk_with_k_equal_to_d_sae_is_relu():
    sae, x = make("topk", k=D_SAE), rows()
    dense = torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_enc)
    encoding = sae.encode(x)
    found = torch.zeros(len(x), D_SAE).scatter(1, encoding.top_indices, encoding.top_acts)
    torch.testing.assert_close(found, dense, rtol=1e-5, atol=1e-5)


def test_topk_keeps_the_largest():
    sae, x = make("topk"), rows()
    pre_acts = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    best = pre_acts.topk(K, dim=1).values.relu()
    torch.testing.assert_close(sae.encode(x).top_acts.sort(dim=1).values, best.sort(dim=1).values, rtol=1e-5, atol=1e-5)


def test_fvu_is_one_for_the_mean_and_invariant_to_scale_and_shift():
    x = rows(200)
    noisy = x + 0.3 * rows(200, seed=6)
    meters = [FvuMeter(D_MODEL) for _ in range(3)]
    meters[0].add(x, x.mean(0).expand_as(x))
    for part, other in zip(x.split(37), noisy.split(37), strict=True):
        meters[1].add(part, other)
    meters[2].add(3 * x + 5, 3 * noisy + 5)
    assert meters[0].value() == pytest.approx(1.0, abs=1e-5)
    assert meters[1].value() == pytest.approx(meters[2].value(), rel=1e-4)
    expected = (x - noisy).square().sum() / (x - x.mean(0)).square().sum()
    assert meters[1].value() == pytest.approx(float(expected), rel=1e-4)


def test_densities_sum_to_l0():
    sae, x = make("topk"), rows(500)
    encoding = sae.encode(x)
    fired = torch.bincount(encoding.top_indices[encoding.top_acts > 0], minlength=D_SAE)
    assert density(fired, 500).sum().item() == pytest.approx(l0(encoding.top_acts).item(), rel=1e-6)


def test_loss_recovered_ends():
    assert loss_recovered(3.0, 3.0, 10.0) == 1.0
    assert loss_recovered(3.0, 10.0, 10.0) == 0.0


def test_geometric_median_resists_outliers():
    x = torch.cat([rows(500), torch.full((20, D_MODEL), 1e5)])
    assert geometric_median(x).norm() < 2 < x.mean(0).norm()
