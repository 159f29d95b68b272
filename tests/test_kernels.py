"""Every fast kernel against its plain definition: values, every gradient, odd sizes, ties and empty rows."""

from __future__ import annotations

import pytest
import torch
from fixtures import batch, make
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sae.architectures import base
from sae.kernels import cpu, cpu_proposals, dense, reference, sparse
from sae.kernels.sparse import pick

SIZES = [(1, 1, 1, 1), (7, 5, 33, 3), (64, 48, 100, 9), (33, 31, 64, 64)]


def sample(n, d, m, k, seed=0):
    torch.manual_seed(seed)
    indices = torch.rand(n, m).topk(k, dim=1).indices
    return torch.randn(n, d), torch.randn(m, d), torch.randn(n, k), indices


@pytest.mark.parametrize("size", SIZES)
def test_products_equal_reference(size):
    rows, table, weights, indices = sample(*size)
    for fast, plain in (
        (cpu.gather_dot(rows, table, indices), reference.gather_dot(rows, table, indices)),
        (cpu.gather_sum(weights, table, indices), reference.gather_sum(weights, table, indices)),
        (
            cpu.scatter_rows(weights, rows, indices, len(table)),
            reference.scatter_rows(weights, rows, indices, len(table)),
        ),
    ):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-4)


def test_reference_chunks_do_not_change_the_result(monkeypatch):
    rows, table, weights, indices = sample(64, 8, 32, 4)
    whole = reference.gather_dot(rows, table, indices), reference.gather_sum(weights, table, indices)
    monkeypatch.setattr(reference, "CHUNK_NUMBERS", 100)
    assert torch.equal(whole[0], reference.gather_dot(rows, table, indices))
    assert torch.equal(whole[1], reference.gather_sum(weights, table, indices))


def test_gradients_are_exact():
    rows, table, weights, indices = (t.double() if t.is_floating_point() else t for t in sample(5, 4, 9, 3))
    for tensor in (rows, table, weights):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda r, t: sparse.gather_dot(r, t, indices), (rows, table))
    assert torch.autograd.gradcheck(lambda w, t: sparse.gather_sum(w, t, indices), (weights, table))


def test_float32_gradients_equal_dense_autograd():
    rows, table, weights, indices = sample(50, 24, 40, 6)
    for tensor in (rows, table, weights):
        tensor.requires_grad_()
    ours = sparse.gather_sum(torch.relu(sparse.gather_dot(rows, table, indices)) * weights, table, indices)
    dense = torch.relu(rows @ table.T).gather(1, indices) * weights
    plain = torch.zeros(50, 40).scatter(1, indices, dense) @ table
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    target = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * target).sum(), (rows, table, weights)),
        torch.autograd.grad((plain * target).sum(), (rows, table, weights)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 9),
    groups=st.integers(4, 40),
    k=st.integers(1, 4),
    levels=st.integers(2, 40),
)
def test_top_k_equals_sorting(dtype, seed, n, groups, k, levels):
    """Few levels make ties common; some rows are negative throughout."""
    generator = torch.Generator().manual_seed(seed)
    pre_acts = torch.randint(-levels, levels, (n, groups * cpu.GROUP), generator=generator).to(dtype)
    pre_acts[0] = -pre_acts[0].abs()
    ours = cpu.top_k_indices(pre_acts, k)
    assert (ours.diff(dim=1) > 0).all()
    kept, best = pre_acts.gather(1, ours).relu(), pre_acts.topk(k, dim=1).values.relu()
    assert torch.equal(kept.sort(dim=1).values, best.sort(dim=1).values)


def test_top_k_ties_go_to_the_smaller_index():
    pre_acts = torch.zeros(1, 256)
    pre_acts[0, [3, 70, 200]] = 2.0
    pre_acts[0, 100] = 5.0
    assert cpu.top_k_indices(pre_acts, 3).tolist() == [[3, 70, 100]]


def test_top_k_of_everything():
    pre_acts = torch.randn(3, 64)
    assert cpu.top_k_indices(pre_acts, 64).tolist() == [list(range(64))] * 3


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 70), st.booleans())
@example(1541, 52, False)
def test_the_norm_crossing_is_the_full_rule(seed, width, whole_numbers):
    """No row is sorted, yet k(x) = 1 + argmin_j |sqrt(c_j) - norm| over the full order; ties and zeros included."""
    generator = torch.Generator().manual_seed(seed)
    if whole_numbers:  # many ties and exact sums
        pre_acts = torch.randint(-3, 4, (9, width), generator=generator).float()
    else:
        pre_acts = torch.randn(9, width, generator=generator)
        pre_acts[pre_acts.abs() < 1e-2] = 0.0  # what is smaller is lost when it is added to a norm of 1e6
    norm = torch.rand(9, generator=generator) * 8
    norm[0] = 0.0
    norm[1] = 1e6
    assert torch.equal(cpu.norm_crossing(pre_acts, norm), reference.norm_crossing(pre_acts, norm))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 70), st.integers(1, 70))
def test_batch_selection_and_thresholds_equal_their_definitions(seed, width, k):
    generator = torch.Generator().manual_seed(seed)
    pre_acts, k = torch.randn(9, width, generator=generator), min(k, width)
    assert torch.equal(cpu.batch_top_k(pre_acts, k), reference.batch_top_k(pre_acts, k))
    threshold = torch.rand(width, generator=generator)
    assert torch.equal(cpu.above(pre_acts, threshold), reference.above(pre_acts, threshold))
    kept = cpu.batch_top_k(pre_acts, k)
    assert (kept >= 0).sum() == min(9 * k, int((pre_acts > 0).sum()))


def test_dense_products_equal_the_sparse_ones():
    generator = torch.Generator().manual_seed(0)
    rows, table = torch.randn(20, 8, generator=generator), torch.randn(30, 8, generator=generator)
    indices = torch.stack([torch.randperm(30, generator=generator)[:12] for _ in range(20)])
    weights = torch.rand(20, 12, generator=generator)
    torch.testing.assert_close(dense.gather_dot(rows, table, indices), reference.gather_dot(rows, table, indices))
    torch.testing.assert_close(dense.gather_sum(weights, table, indices), reference.gather_sum(weights, table, indices))


def test_picking_has_the_gradient_of_indexing():
    vector = torch.randn(30, requires_grad=True)
    indices = torch.randint(0, 30, (50, 7))
    weights = torch.rand(50, 7)
    (expected,) = torch.autograd.grad((vector[indices] * weights).sum(), vector)
    (found,) = torch.autograd.grad((pick(vector, indices) * weights).sum(), vector)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("width", [3, 64, 65, 700])
def test_dots_of_padded_rows_are_those_of_their_latents(width):
    generator = torch.Generator().manual_seed(width)
    rows, table = (torch.randn(n, 24, generator=generator, requires_grad=True) for n in (40, 2000))
    bias = torch.randn(2000, generator=generator)
    n_latents = torch.randint(0, width + 1, (40,), generator=generator)
    n_latents[:2] = torch.tensor([0, width])
    is_padding = torch.arange(width) >= n_latents[:, None]
    indices = torch.randint(0, 2000, (40, width), generator=generator).masked_fill(is_padding, -1)
    latents = indices.clamp_min(0)
    plain = (sparse.gather_dot(rows, table, latents) + sparse.pick(bias, latents)).masked_fill(is_padding, 0)
    dots = sparse.ragged_dot(rows, table, bias, indices)
    torch.testing.assert_close(dots, plain, rtol=1e-5, atol=1e-5)
    weights = torch.randn(40, width, generator=generator)
    gradients = [torch.autograd.grad((t * weights).sum(), (rows, table)) for t in (dots, plain)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    width=st.integers(1, 300),
    latents=st.integers(1, 100),
    spread=st.floats(0, 6),
    keep=st.floats(0, 4),
)
def test_no_latent_above_its_bound_is_missed_by_a_product_in_bfloat16(seed, width, latents, spread, keep):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    rows, table = draw(40, width) * (spread * draw(40, 1)).exp(), draw(latents, width) * draw(latents, 1).exp()
    bias = draw(latents) * 3
    z = (rows.double() @ table.double().T + bias.double()).float()
    bounds = z.flatten()[torch.randperm(z.numel(), generator=generator)[:latents]] * (1 + 1e-3 * draw(latents)) + keep
    kept = torch.zeros(40, latents + 1, dtype=torch.bool)
    indices = cpu_proposals.above(rows, table, bias, bounds)
    kept.scatter_(1, torch.where(indices < 0, latents, indices), True)
    edge = 1e-5 * (rows.abs() @ table.abs().T + bias.abs() + bounds.abs())
    decided = (z - bounds).abs() > edge
    assert ((kept[:, :-1] == (z > bounds)) | ~decided).all() and decided.float().mean() > 0.9
    for row in indices:
        assert (row[row >= 0].diff() > 0).all() and (row.diff() != 0)[: int((row >= 0).sum())].all()


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    width=st.integers(1, 300),
    groups=st.integers(1, 12),
    spread=st.floats(0, 6),
    share=st.floats(0, 1),
)
def test_the_largest_by_a_product_in_bfloat16_are_those_of_float32(seed, width, groups, spread, share):
    latents, k = groups * cpu_proposals.GROUP - 3, max(1, round(share * groups))
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    rows, table = draw(40, width) * (spread * draw(40, 1)).exp(), draw(latents, width) * draw(latents, 1).exp()
    bias = draw(latents) * 3
    assert cpu_proposals.fits(latents, k)
    indices = cpu_proposals.largest(rows, table, bias, k)
    assert (indices.diff(dim=1) > 0).all() and (indices >= 0).all() and (indices < latents).all()
    z = rows.double() @ table.double().T + bias.double()
    edge = 1e-5 * (rows.abs() @ table.abs().T + bias.abs()).max(1).values
    assert (z.gather(1, indices).sort(1).values - z.topk(k).values.sort(1).values).abs().max(1).values.le(edge).all()


def test_biases_far_larger_than_products_do_not_hide_the_largest():
    rows, table = torch.full((1, 4), 1e-9), torch.ones(64, 4)
    bias = 1e4 + torch.arange(64).float()
    assert cpu_proposals.largest(rows, table, bias, 2)[0].tolist() == [62, 63]
    assert cpu_proposals.largest(rows, table, torch.full((64,), 1e4 / 3), 2)[0].tolist() == [0, 1]


def test_ties_among_the_largest_go_to_the_smaller_latent():
    table = torch.ones(100, 8)
    assert cpu_proposals.largest(torch.ones(1, 8), table, torch.zeros(100), 3)[0].tolist() == [0, 1, 2]


def test_rows_that_hold_no_numbers_still_name_k_latents():
    rows = torch.tensor([[float("nan")] * 8, [float("inf")] * 8, [0.0] * 8])
    indices = cpu_proposals.largest(rows, torch.randn(400, 8), torch.zeros(400), 5)
    assert ((indices >= 0) & (indices < 400)).all() and (indices.diff(dim=1) > 0).all()


def test_the_largest_of_many_latents_are_those_of_float32():
    generator = torch.Generator().manual_seed(0)
    rows, table = torch.randn(30, 64, generator=generator), torch.randn(5000, 64, generator=generator)
    rows[:10, 3] += 40  # a column that all products share, as language models have them
    bias = torch.randn(5000, generator=generator)
    for k in (1, 32, 150):
        indices = cpu_proposals.largest(rows, table, bias, k)
        expected = (rows @ table.T + bias).topk(k).indices.sort(1).values
        assert (indices != expected).sum() <= 1  # two numbers that differ in their last bit


@pytest.mark.parametrize(
    "name", ["jumprelu", "relu", "gated", "batch_topk", "matryoshka", "topk", "transcoder", "crosscoder"]
)
def test_codes_are_those_of_the_whole_product(name, monkeypatch):
    sae, x = make(name).eval(), batch(700, 1).x
    with torch.no_grad():
        for tensor in sae.state_dict().values():
            if tensor.dtype == torch.float32:
                tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    codes = []
    for suits in (True, False):
        monkeypatch.setattr(base, "gains_by_bfloat16", lambda _, suits=suits: suits)
        codes.append(sae.encode(x))
    dense = [torch.zeros(len(x), sae.d_sae).scatter_add(1, code.top_indices, code.top_acts) for code in codes]
    assert (dense[0] > 0).any() and torch.equal(*dense)
