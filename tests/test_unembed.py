"""Which latents promote a token most: the pass over blocks against a plain sort of the whole table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae.model.largest import COLUMNS, keep_largest
from sae.model.unembed import Promotion


@pytest.mark.parametrize("n_columns", [1, 7, COLUMNS, COLUMNS + 3])
@pytest.mark.parametrize("n", [1, 5, 32])
def test_the_largest_of_every_column_are_those_of_a_sort(n_columns, n):
    rng = np.random.default_rng(n_columns * 100 + n)
    table = rng.integers(-50, 50, (90, n_columns)).astype(np.float32)  # with many ties
    scales = rng.uniform(0.5, 2, len(table)).astype(np.float32)
    largest = np.full((n_columns, n), -np.inf, np.float32)
    numbers = np.zeros((n_columns, n), np.int64)
    for start in range(0, len(table), 40):
        keep_largest(table[start : start + 40], scales[start : start + 40], start, largest, numbers)
    heights = (table / scales[:, None]).T
    order = np.argsort(-heights, axis=1, kind="stable")[:, :n]
    np.testing.assert_array_equal(numbers, order)
    np.testing.assert_array_equal(largest, np.take_along_axis(heights, order, axis=1))


@pytest.mark.parametrize("n_latents", [3, 50])
def test_promotion_on_a_cpu_is_that_of_plain_torch(n_latents):
    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(n_latents, 40, generator=generator), torch.arange(40) + 7
    promotion = Promotion(4)
    for rows in logits.split(16):
        promotion.add(ids, rows)
    heights = (logits / logits.std(dim=1, keepdim=True)).T.topk(min(4, n_latents), dim=1)
    found = promotion.found()
    assert torch.equal(found.heights, heights.values) and torch.equal(found.latents, heights.indices)
    assert torch.equal(found.tokens, ids)
