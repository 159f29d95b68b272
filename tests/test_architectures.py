"""One suite over every architecture in the folder: a new file is tested without writing a test."""

from __future__ import annotations

import itertools

import pytest
import torch
from fixtures import D_MODEL, D_SAE, K, batch, make, rows

from sae.architectures import ARCHITECTURES, Batch, base
from sae.foundation.metrics import FvuMeter, density, geometric_median, l0, loss_recovered

VARIANCE = torch.tensor(3.0)


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
def test_no_rows_have_an_empty_code(name):
    sae = make(name).eval()
    encoding = sae.encode(rows()[:0])
    assert len(encoding.top_acts) == len(encoding.top_indices) == 0
    assert sae.decode(encoding).shape == (0, D_MODEL)


@every
def test_initialisation_is_tied_where_input_is_target_and_of_unit_norm(name):
    sae = make(name)
    assert torch.equal(sae.W_enc, sae.W_dec.T) == sae.centred
    torch.testing.assert_close(sae.W_enc.norm(dim=0), torch.ones(D_SAE))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))


@every
def test_evaluation_looks_at_one_token_at_a_time(name):
    sae, x = make(name), rows()
    for _ in range(3):
        sae.observe(sae.losses(batch(), VARIANCE).training_pass)
    sae.eval()
    alone = torch.cat([sae(row[None]) for row in x])
    torch.testing.assert_close(sae(x), alone, rtol=1e-5, atol=1e-5)


@every
def test_permuting_latents_permutes_the_code_only(name):
    sae, other, x = make(name), make(name), rows()
    order = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        other.W_enc.copy_(sae.W_enc[:, order])
        other.W_dec.copy_(sae.W_dec[order])
        other.b_enc.copy_(sae.b_enc[order])
    torch.testing.assert_close(sae(x), other(x), rtol=1e-5, atol=1e-5)


# Parameters whose gradient is not the derivative of the loss, on purpose.
STRAIGHT_THROUGH = {
    "jumprelu": {"threshold"},  # a step has no derivative; see test_jumprelu_thresholds_...
    "gated": {"W_dec", "b_dec"},  # the gate's own reconstruction freezes the decoder
    "top_afa": {"b_dec"},  # the norm to aim at is a constant
}


@every
def test_loss_gradients_equal_finite_differences_in_float64(name):
    sae = make(name, torch.float64).double()
    given = Batch(*(None if t is None else t.double() for t in batch(6, same=sae.centred)))
    variance, generator = VARIANCE.double(), torch.Generator().manual_seed(0)
    parameters = dict(sae.named_parameters())

    def loss():
        return sae.losses(given, variance, tokens_seen=10**9).total

    grads = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
    for (key, parameter), grad in zip(parameters.items(), grads, strict=True):
        if key in STRAIGHT_THROUGH.get(name, ()):
            continue
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        before, values = parameter.data.clone(), []
        for step in (1e-7, -1e-7):
            parameter.data = before + step * direction
            values.append(loss().item())
        parameter.data = before
        expected = (values[0] - values[1]) / 2e-7
        assert (grad * direction).sum().item() == pytest.approx(expected, rel=1e-4, abs=1e-7), key


@every
def test_aux_loss_is_zero_while_all_live_and_reaches_dead_encoders(name):
    sae = make(name)
    losses = sae.losses(batch(), VARIANCE)
    assert losses.aux.item() == 0.0
    sae.tokens_since_fired[:10] = 100
    losses = sae.losses(batch(), VARIANCE)
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
    sae.count_firings(sae.encode(rows(10)))
    assert (sae.encode(rows(10)).top_acts == 0).all()
    assert (sae.tokens_since_fired == 17).all()


@every
def test_decoder_stays_of_unit_norm_and_gradient_is_tangent(name):
    sae = make(name)
    sae.losses(batch(), VARIANCE).total.backward()
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
    sae.observe(sae.losses(batch(), VARIANCE).training_pass)
    sae.eval()
    before, acts = sae(x * scale) / scale, sae.encode(x * scale).top_acts / scale
    sae.fold_scale(scale)
    torch.testing.assert_close(sae(x), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.encode(x).top_acts, acts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["transcoder", "crosscoder"])
def test_folding_a_scale_per_column_gives_the_same_dictionary(name):
    sae, x = make(name, **({"skip": True} if name == "transcoder" else {})), rows()
    if name == "transcoder":
        torch.nn.init.normal_(sae.W_skip, generator=torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(9)
    scale_out = torch.rand(D_MODEL, generator=generator) + 0.2
    scale_in = scale_out if name == "crosscoder" else torch.rand(D_MODEL, generator=generator) + 0.2
    before = sae(x * scale_in) / scale_out
    sae.fold_scale(scale_in, scale_out)
    torch.testing.assert_close(sae(x), before, rtol=1e-4, atol=1e-4)


@every
def test_bfloat16_selection_keeps_float32_values(name):
    exact, rounded, x = make(name).eval(), make(name, torch.bfloat16).eval(), rows()
    dense = [torch.zeros(len(x), D_SAE).scatter_add(1, *reversed(s.encode(x)[:2])) for s in (exact, rounded)]
    both = (dense[0] > 0) & (dense[1] > 0)
    assert both.sum() > 0.8 * (dense[0] > 0).sum()
    torch.testing.assert_close(dense[0][both], dense[1][both])


@every
def test_training_lowers_the_loss(name):
    sae = make(name)
    optimiser = torch.optim.Adam(sae.parameters(), lr=0.01)
    given = batch(256, same=sae.centred)
    history = []
    for _ in range(60):
        losses = sae.losses(given, VARIANCE)
        optimiser.zero_grad()
        losses.total.backward()
        sae.project_decoder_gradient()
        optimiser.step()
        sae.normalise_decoder()
        history.append((given.y - losses.training_pass.x_hat).square().sum(1).mean().item())
    assert history[-1] < 0.95 * history[0]


@pytest.mark.parametrize("name", ["topk", "top_afa"])
def test_token_norm_is_undone_after_decoding(name):
    sae, x = make(name, token_norm=True), rows()
    torch.testing.assert_close(sae(3 * x + 7), 3 * sae(x) + 7, rtol=1e-3, atol=1e-3)
    assert torch.isfinite(sae.losses(batch(), VARIANCE).total)
    sized = make(name, token_norm="length")
    torch.testing.assert_close(sized(3 * x), 3 * sized(x), rtol=1e-3, atol=1e-3)
    norms = sized.prepared(x).x.norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, sized.d_in**0.5))
    assert torch.isfinite(sized.losses(batch(), VARIANCE).total)


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


def test_gradient_with_beta_zero_is_topk_bit_for_bit():
    plain, gradient = make("topk"), make("gradient", beta=0.0)
    given = batch()
    a, b = plain.losses(given, VARIANCE), gradient.losses(given, VARIANCE)
    assert torch.equal(a.total, b.total)
    a.total.backward(), b.total.backward()
    for key, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, dict(gradient.named_parameters())[key].grad)


def test_gradient_selection_ignores_sign_and_batch_size_and_uses_the_gradient():
    sae, given = make("gradient", beta=5.0), batch()
    code = sae.encode(given.x, given.gradient)
    assert torch.equal(code.top_indices, sae.encode(given.x, -given.gradient).top_indices)
    twice = sae.encode(given.x.repeat(2, 1), given.gradient.repeat(2, 1))
    assert torch.equal(twice.top_indices, code.top_indices.repeat(2, 1))
    without = sae.encode(given.x)
    assert torch.equal(without.top_indices, make("topk").encode(given.x).top_indices)
    assert not torch.equal(code.top_indices, without.top_indices)
    pre_acts = sae.pre_acts(sae.centre(given.x))
    score = pre_acts * (1 + 5 * (given.gradient @ sae.W_dec.T).abs())
    assert torch.equal(code.top_indices, score.topk(K, dim=1).indices.sort(dim=1).values)
    kept = pre_acts.gather(1, code.top_indices).relu()
    torch.testing.assert_close(code.top_acts, kept)  # values are the activations, not the scores


def pursuit_of(sae, x):
    """The definition, token by token: a dense code and the number of steps."""
    code, n_steps = torch.zeros(len(x), D_SAE), torch.zeros(len(x), dtype=torch.int64)
    for token in range(len(x)):
        rest = x[token] - sae.b_dec
        for _ in range(sae.config.k):
            scores = sae.W_enc.T @ rest + sae.b_enc
            latent = int(scores.argmax())
            value = scores[latent].clamp_min(0)
            is_new = value > 0 and code[token, latent] == 0
            code[token, latent] += value
            rest = rest - value * sae.W_dec[latent]
            n_steps[token] += 1
            if (sae.config.stops_on_repeat and not is_new) or rest.norm() < sae.residual_threshold:
                break
    return code, n_steps


@pytest.mark.parametrize(
    "settings", [{}, {"stops_on_repeat": False, "k": 12}, {"least_residual": 2.0}, {"k": 40, "least_residual": 0.5}]
)
def test_matching_pursuit_takes_each_latent_for_what_is_left(settings):
    sae, x = make("matching_pursuit", **settings).eval(), rows(80)
    expected, n_steps = pursuit_of(sae, x)
    code = sae.encode(x)
    dense = torch.zeros(80, D_SAE).scatter_add(1, code.top_indices, code.top_acts)
    torch.testing.assert_close(dense, expected, rtol=1e-4, atol=1e-5)
    assert code.top_acts.shape[1] == n_steps.max()
    with torch.no_grad():
        without_gradients = sae.encode(x)
    torch.testing.assert_close(without_gradients.top_acts, code.top_acts, rtol=1e-4, atol=1e-5)
    assert n_steps.unique().numel() > 1 or "least_residual" not in settings


def test_matching_pursuit_with_a_tied_encoder_leaves_less_at_every_step():
    errors = []
    for k in (1, 2, 4, 8):
        sae = make("matching_pursuit", k=k)
        torch.nn.init.zeros_(sae.b_enc)
        errors.append((rows() - sae(rows())).square().sum(1))
    assert all((later <= earlier + 1e-5).all() for earlier, later in itertools.pairwise(errors))


def test_batch_topk_keeps_k_a_token_on_average_and_its_threshold_serves_single_tokens():
    sae = make("batch_topk", threshold_tokens=64)
    for seed in range(30):
        sae.observe(sae.losses(batch(seed=seed), VARIANCE).training_pass)
    counts = (sae.encode(rows(seed=99)).top_acts > 0).sum(1)
    assert counts.sum() == 64 * K and counts.float().std() > 0
    sae.eval()
    code = sae.encode(rows(2000, seed=100))
    assert (code.top_acts[code.top_acts > 0] > sae.threshold).all()
    assert (code.top_acts > 0).sum(1).float().mean().item() == pytest.approx(K, rel=0.15)


def test_matryoshka_loss_sums_the_losses_of_its_prefixes():
    sae, given = make("matryoshka", aux_coefficient=0.0), batch()
    losses = sae.losses(given, VARIANCE)
    dense = torch.zeros(64, D_SAE).scatter_add(
        1, losses.training_pass.encoding.top_indices, losses.training_pass.encoding.top_acts
    )
    assert sae.config.prefixes[-1] == D_SAE
    expected = 0.0
    for end in sae.config.prefixes:
        expected += (given.y - dense[:, :end] @ sae.W_dec[:end] - sae.b_dec).square().sum(1).mean() / VARIANCE
    torch.testing.assert_close(losses.total, expected)


def test_top_afa_norm_meets_the_input_within_one_latent():
    sae, x = make("top_afa"), rows(500)
    norm = (x - sae.b_dec).norm(dim=1)
    acts = sae.encode(x).top_acts.sort(dim=1, descending=True).values
    energy = acts.square().cumsum(1).sqrt()
    pre_acts = sae.pre_acts(sae.centre(x)).relu().sort(dim=1, descending=True).values
    full = pre_acts.square().cumsum(1).sqrt()
    best = (full - norm[:, None]).abs().min(dim=1).values
    torch.testing.assert_close((energy[:, -1] - norm).abs(), best, rtol=1e-4, atol=1e-4)
    assert (acts > 0).sum(1).unique().numel() > 3


def test_top_afa_two_norms_differ_by_the_bias():
    given = batch()
    centred, plain = make("top_afa"), make("top_afa", afa_norm="input")
    assert centred.losses(given, VARIANCE).total != plain.losses(given, VARIANCE).total
    for sae in (centred, plain):
        torch.nn.init.zeros_(sae.b_dec)
    assert centred.losses(given, VARIANCE).total == plain.losses(given, VARIANCE).total


def test_jumprelu_thresholds_feel_the_window_and_the_target():
    sae = make("jumprelu", bandwidth=0.5, aux_coefficient=0.0, l0_coefficient=0.0)
    given = batch(200)
    losses = sae.losses(given, VARIANCE, tokens_seen=10**9)
    losses.total.backward()
    z = (given.x - sae.b_dec) @ sae.W_enc + sae.b_enc
    by_act = 2 * (losses.training_pass.x_hat - given.y) @ sae.W_dec.T / len(z) / VARIANCE
    near = ((z - sae.threshold).abs() < 0.25).float()
    expected = -(sae.threshold / 0.5) * (near * by_act).sum(0)
    torch.testing.assert_close(sae.threshold.grad, expected, rtol=1e-3, atol=1e-5)
    penalised = make("jumprelu", bandwidth=0.5)
    penalised.losses(given, VARIANCE, tokens_seen=10**9).total.backward()
    assert penalised.threshold.grad.sum() < sae.threshold.grad.sum()  # too many fire: thresholds are pushed up


def test_jumprelu_thresholds_stay_positive_so_that_they_can_rise_again():
    sae = make("jumprelu")
    with torch.no_grad():
        sae.threshold.fill_(-0.5)
    sae.observe(sae.losses(batch(), VARIANCE).training_pass)
    assert (sae.threshold > 0).all()
    sae.losses(batch(), VARIANCE, tokens_seen=10**9).total.backward()
    assert (sae.threshold.grad != 0).any()


def test_gated_magnitude_at_initialisation_is_the_gate():
    sae, x = make("gated"), rows()
    with torch.no_grad():
        sae.b_mag.copy_(sae.b_enc)
    dense = torch.zeros(64, D_SAE).scatter_add(1, *reversed(sae.encode(x)[:2]))
    torch.testing.assert_close(dense, sae.pre_acts(sae.centre(x)).relu())


def test_transcoder_skip_is_a_linear_map_beside_the_code():
    sae, x = make("transcoder", skip=True), rows()
    before = sae(x)
    torch.nn.init.normal_(sae.W_skip, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(sae(x), before + x @ sae.W_skip)
    with pytest.raises(ValueError, match="skip connection"):
        sae.decode(sae.encode(x))


def test_multi_topk_adds_an_eighth_of_the_wider_code():
    given = batch()
    plain, multi = make("topk"), make("topk", multi_topk=True)
    wide = make("topk", k=4 * K)
    expected = plain.losses(given, VARIANCE).total + wide.losses(given, VARIANCE).total / 8
    torch.testing.assert_close(multi.losses(given, VARIANCE).total, expected)


@every
def test_a_code_made_in_pieces_is_that_of_all_rows(name, monkeypatch):
    sae = make(name)
    for seed in range(3):  # thresholds of a whole batch begin at what they see
        sae.observe(sae.losses(batch(seed=seed, same=sae.centred), VARIANCE).training_pass)
    sae.eval()
    part = batch(50, same=sae.centred)

    def dense():
        code = sae.encode(part.x, part.gradient)
        return torch.zeros(len(part.x), D_SAE).scatter_add(1, code.top_indices, code.top_acts)

    whole = dense()
    monkeypatch.setattr(base, "PIECE_NUMBERS", 7 * D_SAE)
    assert whole.any()
    torch.testing.assert_close(dense(), whole)
