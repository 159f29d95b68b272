"""Language models that are spread over several GPUs: the same activations, gradients and edits as on one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures import run_here, write_config

from sae.errors import UnavailableError
from sae.model import language_model, spread
from sae.model.hookpoints import Channel, HookPoint, resolve_all
from sae.model.unembed import Unembedding
from sae.stream.harvest import HarvestConfig, Harvester

HOOKS = HookPoint("resid_post", 1), HookPoint("mlp_out", 2), HookPoint("attn_out", 1)
CPU = torch.device("cpu")


def loaded(folder):
    return language_model.load(language_model.FolderModel(source="folder", path=folder), CPU)


def harvested(lm):
    ids = np.random.default_rng(0).integers(5, 200, (3, 16))
    channels = (*map(Channel, HOOKS), Channel(HOOKS[0], "gradient"))
    return Harvester(lm, channels, HarvestConfig(compile=False), "joined").harvest(ids, np.zeros_like(ids))


def check_same(plain, other):
    for channel, x in harvested(plain).x.items():
        torch.testing.assert_close(harvested(other).x[channel].cpu(), x.cpu(), rtol=1e-5, atol=1e-5)
    rows = torch.randn(4, plain.d_model)
    expected = Unembedding(plain)(rows.to(plain.device)).cpu()
    torch.testing.assert_close(Unembedding(other)(rows.to(other.device)).cpu(), expected, rtol=1e-4, atol=1e-4)
    changed = []
    for lm in (plain, other):
        place = resolve_all(lm, (HOOKS[1],))[HOOKS[1]]
        handle = place.watch(lambda x: x * 2)
        ids = torch.arange(5, 21, device=lm.device)[None]
        changed.append(lm.model(input_ids=ids, use_cache=False).logits.detach().float().cpu())
        handle.remove()
    torch.testing.assert_close(changed[1], changed[0], rtol=1e-4, atol=1e-4)


def test_a_model_whose_parts_bring_their_inputs_is_read_like_a_plain_one(tiny_model):
    """On one device, but through the hooks and moves of a spread one."""
    plain, other = loaded(tiny_model), loaded(tiny_model)
    spread.dispatch(other.model, {"": "cpu"})
    check_same(plain, replace(other, home=CPU))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_spread_over_gpus_is_read_like_one_on_a_cpu(tiny_model):
    plain, other = loaded(tiny_model), loaded(tiny_model)
    size = sum(p.numel() * p.element_size() for p in other.model.parameters())
    places = spread.device_map(other.model, {0: size * 7 // 10, 1: size})
    assert set(places.values()) == {0, 1}
    spread.dispatch(other.model, places)
    check_same(plain, replace(other, home=torch.device("cuda", 0)))


def test_blocks_are_whole_and_in_order_and_too_few_gpus_are_told(tiny_model):
    model = loaded(tiny_model).model
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    places = spread.device_map(model, {0: size * 7 // 10, 1: size})
    assert [places[f"model.layers.{i}"] for i in range(model.config.num_hidden_layers)] == [0, 1, 1]
    with pytest.raises(UnavailableError, match=r"model\.spread: the GPUs hold this model up to model\."):
        spread.device_map(model, {0: size * 3 // 10, 1: size * 3 // 10})


def test_spreading_wants_several_gpus(tmp_path, tree):
    done = run_here("train", write_config(tmp_path, tree, model__spread=True, device="cpu"))
    assert done.returncode == 69 and "model.spread: this process sees 0 GPUs" in done.stderr
