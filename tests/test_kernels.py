"""Every fast kernel against its plain definition: values, every gradient, odd sizes, ties and empty rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.kernels import cpu, reference, sparse

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
