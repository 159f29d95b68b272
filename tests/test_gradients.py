"""Coefficients of the loss at a hook point: true gradients, from the upper layers only, whatever the batch size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures import ids, small_model

from sae.model.hookpoints import Channel, HookPoint, resolve
from sae.model.relevance import RelevanceRules
from sae.stream.harvest import HarvestConfig, Harvester

HOOK = HookPoint("resid_post", 1)


def harvest(lm, kinds=("activation", "gradient"), n=6, **config):
    channels = tuple(Channel(HOOK, kind) for kind in kinds)
    return Harvester(lm, channels, HarvestConfig(**config), "joined").harvest(ids(n), np.zeros((n, 16), np.int64))


def loss_with(lm, tokens, change):
    handle = resolve(lm, HOOK).watch(lambda x: x + change)
    with torch.no_grad():
        logits = lm.model(input_ids=tokens).logits[:, :-1]
    handle.remove()
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum").item()


@pytest.mark.parametrize("family", ["Llama", "GPT2", "GPTNeoX"])
def test_gradients_predict_what_a_small_change_does_to_the_summed_loss(family):
    lm = small_model(family)
    lm.cast(torch.float32)
    gradient = harvest(lm, n=2).x[Channel(HOOK, "gradient")]
    change = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    tokens = torch.from_numpy(ids(2))
    measured = (loss_with(lm, tokens, 1e-2 * change) - loss_with(lm, tokens, -1e-2 * change)) / 2e-2
    assert (gradient * change).sum().item() == pytest.approx(measured, rel=0.02, abs=1e-3)


def test_gradients_do_not_depend_on_the_batch_and_leave_activations_as_they_are():
    lm = small_model("Llama")
    one, many = harvest(lm, batch_contexts=1), harvest(lm, batch_contexts=6)
    for channel, x in one.x.items():
        torch.testing.assert_close(x, many.x[channel], rtol=1e-4, atol=1e-6)
    plain = harvest(lm, kinds=("activation",))
    torch.testing.assert_close(plain.x[Channel(HOOK)], many.x[Channel(HOOK)], rtol=1e-5, atol=1e-5)


def test_hook_points_side_by_side_in_one_block_each_get_their_gradient():
    """In a block whose attention and MLP run beside each other the later hook point does not depend on the first."""
    lm, hooks = small_model("GPTNeoX"), (HookPoint("attn_out", 1), HookPoint("mlp_out", 1))
    channels = tuple(Channel(hook, kind) for hook in hooks for kind in ("activation", "gradient"))
    made = Harvester(lm, channels, HarvestConfig(), "joined").harvest(ids(2), np.zeros((2, 16), np.int64))
    first, second = (made.x[Channel(hook, "gradient")] for hook in hooks)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)  # both are added to the same sum
    assert first.abs().sum() > 0


def test_the_last_position_has_no_gradient_and_is_not_kept():
    made = harvest(small_model("Llama"))
    assert (made.x[Channel(HOOK, "gradient")][:, -1] == 0).all()
    assert not made.keep[:, -1].any() and made.keep[:, 1:-1].all()


def test_the_way_back_ends_at_the_hook_point():
    lm, seen = small_model("Llama"), {}
    handles = [
        block.register_forward_hook(
            lambda _m, _a, out, n=n: seen.__setitem__(n, out if isinstance(out, torch.Tensor) else out[0])
        )
        for n, block in enumerate(lm.body.layers)
    ]
    harvest(lm)
    for handle in handles:
        handle.remove()
    assert not seen[0].requires_grad and seen[2].requires_grad
    assert all(p.grad is None and not p.requires_grad for p in lm.model.parameters())


@pytest.mark.parametrize("family", ["Llama", "GPT2", "GPTNeoX"])
def test_relevance_rules_change_gradients_and_no_values(family):
    lm, tokens = small_model(family), torch.from_numpy(ids(2))
    with torch.no_grad():
        before = lm.model(input_ids=tokens).logits
        with RelevanceRules(lm).active():
            inside = lm.model(input_ids=tokens).logits
        after = lm.model(input_ids=tokens).logits
    torch.testing.assert_close(inside, before, rtol=1e-4, atol=1e-5)
    assert torch.equal(after, before)
    made = harvest(lm, kinds=("activation", "gradient", "relp"))
    gradient, relp = (made.x[Channel(HOOK, kind)] for kind in ("gradient", "relp"))
    assert torch.isfinite(relp).all() and not torch.allclose(gradient, relp)


def test_relevance_of_a_gated_mlp_is_shared_by_its_factors():
    """With scales and activations held constant an MLP of one hidden unit is quadratic: the half rule halves it."""
    lm = small_model("Llama")
    rules = RelevanceRules(lm)
    assert len(rules.gates) == lm.n_layers and len(rules.activations) == lm.n_layers
    assert len(RelevanceRules(small_model("GPT2")).gates) == 0
    mlp = lm.body.layers[1].mlp
    x = torch.randn(1, 1, 32, requires_grad=True)
    with rules.active():
        y = mlp(x)
        (relevance,) = torch.autograd.grad((y * 1.7).sum(), x)
    torch.testing.assert_close((relevance * x).sum(), (y * 1.7).sum(), rtol=1e-4, atol=1e-5)  # conserved
