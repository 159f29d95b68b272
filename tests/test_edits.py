"""Edits of a running model: what each change does, to the bit where nothing is edited, and with a cache of keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures import ids

from sae.apply.edit import DirectionEdit, EditPlan, FeatureEdit, Sampling, edited, generate
from sae.architectures import ARCHITECTURES, build
from sae.errors import ConfigError
from sae.model import language_model
from sae.model.hookpoints import resolve
from sae.model.language_model import FolderModel

D_MODEL = 32


@pytest.fixture(scope="module")
def lm(tiny_model):
    return language_model.load(FolderModel(source="folder", path=tiny_model), torch.device("cpu"))


def dictionary(name, **settings):
    config = ARCHITECTURES[name].config_class(
        **{"architecture": name, "name": "x", "hook": "resid_post.1", "d_sae": 96, "k": 8, **settings}
    )
    sae = build(config, D_MODEL).eval()
    sae.initialise(torch.Generator().manual_seed(1), torch.randn(D_MODEL, generator=torch.Generator().manual_seed(2)))
    return sae


@pytest.fixture(scope="module")
def sae():
    return dictionary("topk")


def activations(lm, sae, tokens, plan=None):
    """What leaves the hook point, with the edits of a plan if there is one; and the logits."""
    seen = []
    place = resolve(lm, sae.config.writes[0])

    def run():
        handle = place.watch(lambda x: seen.append(x.detach().clone().reshape(*tokens.shape, -1)))
        try:
            with torch.no_grad():
                return lm.model(input_ids=tokens, use_cache=False).logits
        finally:
            handle.remove()

    if plan is None:
        logits = run()
    else:
        with edited(lm, sae, plan):
            logits = run()
    return seen[0], logits


def tokens_of(lm):
    return torch.from_numpy(ids(n=3, length=12)).to(torch.int64)


def test_no_edit_is_the_same_to_the_bit(lm, sae):
    tokens = tokens_of(lm)
    assert torch.equal(activations(lm, sae, tokens)[1], activations(lm, sae, tokens, EditPlan(()))[1])
    assert generate(lm, sae, "one two", EditPlan(())) == generate(lm, sae, "one two", EditPlan((), positions="last"))


@pytest.mark.parametrize("change", ["add", "scale", "clamp", "clamp_active", "ablate"])
def test_h_changes_by_the_difference_of_the_decoded_codes(lm, sae, change):
    tokens = tokens_of(lm)
    h, _ = activations(lm, sae, tokens)
    flat = h[:, 1:].reshape(-1, h.shape[-1])
    with torch.no_grad():
        code = sae.encode(flat)
        z = torch.zeros(len(flat), sae.d_sae).scatter(1, code.top_indices, code.top_acts)
        feature = int((z > 0).sum(0).argmax())
        new = z.clone()
        column = z[:, feature]
        new[:, feature] = {
            "add": column + 2.5, "scale": column * 2.5, "clamp": torch.full_like(column, 2.5),
            "clamp_active": torch.where(column > 0, 2.5, 0.0), "ablate": torch.zeros_like(column),
        }[change]  # fmt: skip
        wanted = flat + (new - z) @ sae.W_dec
    after, logits = activations(lm, sae, tokens, EditPlan((FeatureEdit(feature, change, 2.5),)))
    assert torch.allclose(after[:, 1:].reshape(wanted.shape), wanted, atol=1e-5)
    assert torch.equal(after[:, 0], h[:, 0])  # no dictionary is trained on position 0
    assert not torch.equal(logits, activations(lm, sae, tokens)[1])


def test_a_direction_is_taken_out_and_the_norm_kept(lm, sae):
    tokens = tokens_of(lm)
    h, _ = activations(lm, sae, tokens)
    direction = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(1))
    out = EditPlan((DirectionEdit(direction, "project_out"), FeatureEdit(3, "project_out")), skipped=0, keep_norm=True)
    after, _ = activations(lm, sae, tokens, out)
    assert torch.allclose(after.norm(dim=-1), h.norm(dim=-1), rtol=1e-5)
    assert (after @ sae.W_dec[3]).abs().max() < 1e-4
    added, _ = activations(lm, sae, tokens, EditPlan((DirectionEdit(direction, "add", 2.0),), skipped=0))
    assert torch.allclose(added, h + 2 * direction, atol=1e-5)


def test_every_generated_token_is_edited_though_keys_are_kept(lm, sae):
    """With a cache the model writes what whole passes over the growing text would write."""
    plan = EditPlan((FeatureEdit(5, "add", 6.0), FeatureEdit(7, "scale", 3.0)))
    prompt = "alpha beta gamma"
    wanted = list(lm.token_ids(prompt, 64))
    start = len(wanted)
    for _ in range(6):
        _, logits = activations(lm, sae, torch.tensor([wanted]), plan)
        wanted.append(int(logits[0, -1].argmax()))
    text = lm.tokenizer.decode(wanted[start:], skip_special_tokens=True)
    assert generate(lm, sae, prompt, plan, sampling=Sampling(6))[0] == text


def test_positions_of_a_plan(lm, sae):
    tokens = tokens_of(lm)
    h, _ = activations(lm, sae, tokens)
    changed = {
        positions: (activations(lm, sae, tokens, EditPlan((FeatureEdit(5, "add", 1.0),), positions))[0] != h).any(-1)
        for positions in ("all", "last", "prompt", "generated")
    }
    assert changed["all"][:, 1:].all() and changed["prompt"][:, 1:].all() and not changed["generated"].any()
    assert changed["last"][:, -1].all() and not changed["last"][:, :-1].any()


def test_draws_are_the_same_for_the_same_seed(lm, sae):
    plan = EditPlan((FeatureEdit(5, "add", 2.0),), positions="generated")
    first = generate(lm, sae, "alpha beta", plan, sampling=Sampling(8, 1.0, 3, 4))
    state = torch.get_rng_state()
    assert len(first) == 3 and first == generate(lm, sae, "alpha beta", plan, sampling=Sampling(8, 1.0, 3, 4))
    assert torch.equal(state, torch.get_rng_state())


def test_what_cannot_be_edited_is_refused(lm, sae):
    for plan, words in (
        (EditPlan((FeatureEdit(96, "ablate"),)), "features 0 to 95"),
        (EditPlan((FeatureEdit(0, "remove"),)), "allowed are add"),  # pyright: ignore[reportArgumentType]
        (EditPlan((DirectionEdit(torch.zeros(3)),)), "a direction of shape"),
        (EditPlan((), positions="some"), "positions"),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(ConfigError, match=words), edited(lm, sae, plan):
            pass


def test_a_transcoder_reads_at_one_place_and_writes_at_another(lm):
    sae = dictionary("transcoder", hook="mlp_in.1", target="mlp_out.1")
    tokens = tokens_of(lm)
    h, _ = activations(lm, sae, tokens)
    after, _ = activations(lm, sae, tokens, EditPlan((FeatureEdit(9, "clamp", 2.0),)))
    change = (after - h)[:, 1:].reshape(-1, lm.d_model).detach().numpy()
    row = sae.W_dec[9].detach().numpy()
    along = change @ row
    assert np.allclose(change, along[:, None] * row, atol=1e-5) and (np.abs(along) <= 2 + 1e-4).any()
