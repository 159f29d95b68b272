"""Direct feature attribution adds up to the pre-activation, by source position and by head."""

from __future__ import annotations

import json

import pytest
import torch
from fixtures import copy_run, harvested, ids, run_here, small_model

from sae.apply.heads.attribution import attribute, head_shares
from sae.architectures import build
from sae.architectures.topk import TopKConfig
from sae.errors import ConfigError
from sae.evaluation.measures.head_attribution import agreement, contributions
from sae.model.hookpoints import HookPoint

HOOK = HookPoint("attn_z", 1)


def dictionary(width, hook=HOOK):
    sae = build(TopKConfig(name="x", hook=hook, d_sae=48, k=4), width)
    sae.initialise(torch.Generator().manual_seed(0), torch.zeros(width))
    return sae


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Qwen3", "GPTNeoX", "Gemma2", "Gemma3Text"])
def test_attributions_sum_to_the_pre_activation(family):
    lm, tokens = small_model(family), ids(1, 40)  # longer than a sliding window of 16
    z = harvested(lm, (HOOK,), tokens, batch_contexts=1)[HOOK][0]
    sae = dictionary(z.shape[1])
    before = lm.model.config._attn_implementation
    found = attribute(lm, sae, 7, torch.from_numpy(tokens[0]))
    assert lm.model.config._attn_implementation == before
    expected = z @ sae.W_enc[:, 7]
    torch.testing.assert_close(found.by_source.sum(1), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.by_head.sum(1), expected, rtol=1e-4, atol=1e-4)
    assert (found.by_source.triu(1) == 0).all()


def test_head_shares_sum_to_one_and_follow_the_weights():
    sae = dictionary(32)
    shares = head_shares(sae, 4)
    torch.testing.assert_close(shares.sum(1), torch.ones(48))
    with torch.no_grad():
        sae.W_dec[0] = 0
        sae.W_dec[0, 8:16] = 1
    assert head_shares(sae, 4)[0].tolist() == [0, 1, 0, 0]


def test_other_hook_points_are_refused():
    lm = small_model("Llama")
    with pytest.raises(ConfigError, match="needs a dictionary at one attn_z"):
        attribute(lm, dictionary(32, HookPoint("resid_post", 1)), 0, torch.arange(8))


def test_what_heads_add_sums_to_the_pre_activation():
    generator = torch.Generator().manual_seed(0)
    z, encoder = torch.randn(7, 24, generator=generator), torch.randn(7, 24, generator=generator)
    parts = contributions(z, encoder, 4)
    assert parts.shape == (7, 4)
    torch.testing.assert_close(parts.sum(1), (z * encoder).sum(1))
    torch.testing.assert_close(parts[:, 1], (z[:, 6:12] * encoder[:, 6:12]).sum(1))


def test_agreement_of_the_same_shares_is_whole_and_of_others_none():
    shares = torch.rand(400, 8, generator=torch.Generator().manual_seed(1))
    same = agreement(shares, shares * 3)
    assert same.correlation.min() > 0.999 and same.same_first.all()
    assert agreement(shares, -shares).correlation.max() < -0.999
    other = agreement(shares, torch.rand(400, 8, generator=torch.Generator().manual_seed(2)))
    assert abs(float(other.correlation.mean())) < 0.06 and float(other.same_first.mean()) < 0.25


def test_both_attributions_of_a_run_are_compared(every_architecture, tmp_path):
    run = copy_run(every_architecture, tmp_path / "bits")
    assert run_here("eval", run / "dictionaries/heads", "--measures", "head_attribution").returncode == 0
    figures = json.loads((run / "dictionaries/heads/metrics.json").read_text())["head_attribution"]
    assert (
        figures["latents"] > 10
        and -1 <= figures["spearman_low"] <= figures["spearman"] <= figures["spearman_high"] <= 1
    )
    assert 0 <= figures["same_first"] <= 1
