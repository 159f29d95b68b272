"""Hook points are found by structure in every family, and harvest sees what the model computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import FAMILIES, harvested, ids, small_model

from sae.errors import ConfigError, NumericError
from sae.model.hookpoints import SITES, Channel, HookPoint, find_places, resolve
from sae.stream.harvest import HarvestConfig, Harvester, choose_dtype


@pytest.fixture(params=list(FAMILIES))
def lm(request):
    return small_model(request.param)


def test_every_site_is_found_and_adds_up(lm):
    """resid_post = resid_pre + attn_out + mlp_out, in every layer, and resid_post.l is resid_pre.(l + 1)."""
    hooks = tuple(HookPoint(site, layer) for site in SITES for layer in range(3))
    x = harvested(lm, hooks, ids())
    for layer in range(3):
        parts = [x[HookPoint(site, layer)] for site in ("resid_pre", "attn_out", "mlp_out")]
        torch.testing.assert_close(sum(parts), x[HookPoint("resid_post", layer)], rtol=1e-4, atol=1e-4)
        if layer:
            assert torch.equal(x[HookPoint("resid_pre", layer)], x[HookPoint("resid_post", layer - 1)])


def test_attention_is_told_from_mlp(lm):
    """Changing an earlier token, with the block's other inputs held, changes attn_out at later positions."""
    site_modules = {site: place for site, place in find_places(lm, 0).items()}
    tokens = torch.from_numpy(ids(1))
    changed = tokens.clone()
    changed[0, 0] = (changed[0, 0] + 7) % 95 + 1
    seen = {}
    for name, given in (("a", tokens), ("b", changed)):
        handle = site_modules["attn_out"].watch(lambda x, name=name: seen.__setitem__(name, x.clone()))
        with torch.no_grad():
            lm.body(input_ids=given)
        handle.remove()
    a, b = seen["a"].reshape(16, -1), seen["b"].reshape(16, -1)
    assert not torch.allclose(a[1:], b[1:], atol=1e-6)


def test_inner_sites_feed_their_outputs(lm):
    """Replacing attn_z (mlp_hidden) by zeros changes attn_out (mlp_out) and nothing before it."""
    for inner, outer in (("attn_z", "attn_out"), ("mlp_hidden", "mlp_out")):
        places = find_places(lm, 1)
        seen = []
        watch = places[outer].watch(lambda x, seen=seen: seen.append(x.clone()))
        tokens = torch.from_numpy(ids(1))
        with torch.no_grad():
            lm.body(input_ids=tokens)
            edit = places[inner].watch(torch.zeros_like)
            lm.body(input_ids=tokens)
        edit.remove()
        watch.remove()
        assert not torch.allclose(seen[0], seen[1])


def test_the_whole_mlp_reads_mlp_in(lm):
    """Zeros at mlp_in make mlp_out the same for every token: also the second of two projections has them."""
    places, seen = find_places(lm, 1), []
    edit, watch = places["mlp_in"].watch(torch.zeros_like), places["mlp_out"].watch(seen.append)
    with torch.no_grad():
        lm.body(input_ids=torch.from_numpy(ids(1)))
    edit.remove()
    watch.remove()
    rows = seen[0].reshape(16, -1)
    torch.testing.assert_close(rows, rows[:1].expand_as(rows))


def test_a_mixture_of_experts_has_no_mlp_hidden():
    """What goes into its router is no hidden layer; its experts' are several."""
    lm = small_model("Qwen3Moe")
    assert set(find_places(lm, 1)) == set(SITES) - {"mlp_hidden"}
    with pytest.raises(ConfigError, match=r"mlp_hidden\.1.*It has: resid_pre\.1, .*mlp_out\.1"):
        resolve(lm, HookPoint("mlp_hidden", 1))


def test_widths_are_those_of_what_flows():
    lm = small_model("Gemma")
    widths = {site: place.width for site, place in find_places(lm, 0).items()}
    assert widths == {**dict.fromkeys(SITES, 32), "attn_z": 48, "mlp_hidden": 48}


def test_an_embedding_may_be_narrower_than_the_blocks():
    lm = small_model("OPT", word_embed_proj_dim=16, do_layer_norm_before=False)
    assert lm.d_model == 32
    x = harvested(lm, (HookPoint("resid_post", 1),), ids())
    assert x[HookPoint("resid_post", 1)].shape == (6, 16, 32)


def test_experts_and_a_shared_expert_are_no_attention():
    """Their sum is all that a block of one mixer adds; neither looks at other tokens."""
    lm = small_model("NemotronH")
    assert all(set(find_places(lm, layer)) == {"resid_pre", "resid_post"} for layer in range(lm.n_layers))


@pytest.mark.parametrize("family", ["XLNet", "Reformer"])
def test_a_stream_that_cannot_be_read_by_token_is_refused(family):
    """XLNet puts tokens before contexts; a reversible network has two streams."""
    with pytest.raises(ConfigError, match="no hook points in this model"):
        resolve(small_model(family), HookPoint("resid_post", 1))


def test_spliced_identity_changes_nothing(lm):
    tokens = torch.from_numpy(ids(2))
    with torch.no_grad():
        clean = lm.model(input_ids=tokens, use_cache=False).logits
        for site in SITES:
            handle = resolve(lm, HookPoint(site, 1)).watch(lambda x: x.clone())
            assert torch.equal(lm.model(input_ids=tokens, use_cache=False).logits, clean)
            handle.remove()


def test_harvest_is_the_same_for_any_batch_size():
    lm, hook = small_model("Llama"), HookPoint("resid_post", 1)
    found = [harvested(lm, (hook,), ids(), batch_contexts=n)[hook] for n in (1, 4, 6, 32)]
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-5, atol=1e-5)


def test_the_model_stops_at_the_deepest_hook_point():
    lm = small_model("Llama")
    ran = []
    handles = [
        m.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, m in lm.model.named_modules() if n.count(".") == 2
    ]
    hooks = (HookPoint("resid_post", 0), HookPoint("mlp_out", 1))
    Harvester(lm, tuple(map(Channel, hooks)), HarvestConfig(), "joined")
    ran.clear()
    harvested(lm, hooks, ids())
    for handle in handles:
        handle.remove()
    assert "model.layers.0" in ran and "model.layers.2" not in ran and "lm_head" not in ran


def test_positions_and_special_tokens_are_dropped():
    lm, tokens = small_model("Llama"), ids()
    tokens[:, 5] = 0
    keep = Harvester(lm, (Channel(HookPoint("resid_post", 0)),), HarvestConfig(drop_positions=2), "joined").keep(
        torch.from_numpy(tokens), np.zeros_like(tokens)
    )
    expected = np.ones_like(tokens, dtype=bool)
    expected[:, [0, 1, 5]] = False
    assert np.array_equal(keep.numpy(), expected)


def test_wrong_hook_points_name_what_there_is():
    lm = small_model("Llama")
    with pytest.raises(ConfigError, match=r"mlp_out\.40.*layers 0\.\.2"):
        resolve(lm, HookPoint("mlp_out", 40))
    with pytest.raises(ValueError, match="resid_pre, resid_post, attn_out"):
        HookPoint.parse("residual.3")


def test_the_dtype_is_chosen_by_what_the_processor_has(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_dtype(cpu, "float32") == torch.float32 and choose_dtype(cpu, "bfloat16") == torch.bfloat16
    assert choose_dtype(torch.device("cuda"), "auto") == torch.bfloat16
    for flags, dtype in (("fpu avx2 avx512f", torch.float32), ("fpu avx512_bf16 sse", torch.bfloat16)):
        cpuinfo = f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: bf16\n"
        monkeypatch.setattr(Path, "read_text", lambda *_, cpuinfo=cpuinfo: cpuinfo)
        assert choose_dtype(cpu, "auto") == dtype


def test_casting_leaves_rotary_frequencies_exact():
    lm = small_model("Llama")
    frequencies = lm.body.rotary_emb.inv_freq.clone()
    lm.cast(torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in lm.model.parameters())
    assert torch.equal(lm.body.rotary_emb.inv_freq, frequencies)


def test_bfloat16_models_are_probed_exactly_and_left_as_they_were():
    lm = small_model("Llama")
    lm.cast(torch.bfloat16)
    before = {n: p.clone() for n, p in lm.model.named_parameters()}
    assert set(find_places(lm, 1)) == set(SITES)
    for name, parameter in lm.model.named_parameters():
        assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, before[name])


def test_activations_that_are_not_finite_are_refused():
    lm = small_model("Llama")
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[5] = float("inf")
    tokens = np.full((1, 8), 5)
    with pytest.raises(NumericError, match="not finite"):
        harvested(lm, (HookPoint("resid_pre", 0),), tokens, batch_contexts=1)
