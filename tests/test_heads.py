"""Firings of attention latents: attributions add up, what is written upstream comes back, repeated stretches, command and page."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures import chromium, copy_run, harvested, ids, run_here, serving, settled, small_model, strict, violations
from pydantic import TypeAdapter

from feature_store.results.attributions import Attribution, attributions_of, write_attributions
from feature_store.results.findings import Finding
from sae.apply.heads.attribution import Firing, attribute, attribute_firings
from sae.apply.heads.prefix import BEFORE, BETWEEN, LONGEST, _copies, by_prefix_length, corruption, repeated
from sae.apply.heads.report import KINDS, source_kind
from sae.apply.heads.upstream import recursive_attribution, sources_of
from sae.architectures import build
from sae.architectures.topk import TopKConfig
from sae.errors import ConfigError
from sae.model import language_model
from sae.model.hookpoints import HookPoint
from sae.model.language_model import FolderModel
from server import responses

HOOK = HookPoint("attn_z", 1)


def dictionary(width, hook=HOOK, **settings):
    sae = build(TopKConfig(name="x", hook=hook, **{"d_sae": 48, "k": 4, **settings}), width).eval()
    sae.initialise(torch.Generator().manual_seed(0), torch.zeros(width))
    return sae


def planted(hook, x):
    """A dictionary of one latent that reconstructs x exactly where the activation is x."""
    sae = build(TopKConfig(name="x", hook=hook, d_sae=1, k=1), len(x)).eval()
    with torch.no_grad():
        sae.W_dec.copy_(F.normalize(x, dim=0)[None])
        sae.W_enc.copy_(F.normalize(x, dim=0)[:, None])
        sae.b_dec.zero_()
        sae.b_enc.zero_()
    return sae


@pytest.mark.parametrize("family", ["Llama", "GPT2"])
def test_firings_together_are_attributed_as_alone(family):
    lm, tokens = small_model(family), ids(3, 20)
    sae = dictionary(harvested(lm, (HOOK,), tokens)[HOOK].shape[2])
    firings = [
        Firing(latent, tokens[row][:length])
        for row, latent, length in ((0, 3, 20), (1, 9, 5), (0, 8, 6), (2, 40, 11), (0, 3, 19))
    ]
    for firing, parts in zip(firings, attribute_firings(lm, sae, firings), strict=True):
        alone = attribute(lm, sae, firing.latent, torch.from_numpy(firing.ids))
        assert parts.by_source == pytest.approx(alone.by_source[-1].numpy(), abs=1e-5)
        assert parts.by_head == pytest.approx(alone.by_head[-1].numpy(), abs=1e-5)
        assert parts.by_source.sum() == pytest.approx(parts.by_head.sum(), abs=1e-5)


def test_what_an_earlier_latent_writes_is_what_comes_back_from_it():
    lm, tokens = small_model("Llama"), ids(1, 14)
    before, heads, out = HookPoint("resid_post", 0), HookPoint("attn_z", 0), HookPoint("attn_out", 0)
    seen = harvested(lm, (HOOK, before, heads, out), tokens)
    sae, firing = dictionary(seen[HOOK].shape[2]), Firing(7, tokens[0])
    [source] = sources_of(lm, sae, [firing], {})
    there = {hook: x[0, source.position] for hook, x in seen.items()}
    earlier = {
        "stream": planted(before, there[before]),
        "heads": planted(heads, there[heads]),
        "out": planted(out, there[out]),
    }
    [again] = sources_of(lm, sae, [firing], earlier)
    assert again.position == source.position and again.share == pytest.approx(source.share)
    # With the scale of the normalisation held constant, all of the contribution is in the stream before the layer ...
    assert again.latents["stream"][0] == (0, pytest.approx(source.share, rel=1e-3))
    # ... and what the heads of the layer before write is what attention added.
    assert again.latents["heads"][0][1] == pytest.approx(again.latents["out"][0][1], rel=1e-3)

    edges = recursive_attribution(lm, ("own", sae), [firing], earlier)
    assert [edge.depth for edge in edges][:1] == [0] and {edge.first_latent for edge in edges} == {7}
    if again.latents["heads"][0][1] > 0:
        assert edges[1].dictionary == "heads" and edges[1].source.latents == {}
        assert edges[1].firing.ids.tolist() == tokens[0][: source.position + 1].tolist()


def test_dictionaries_that_are_not_before_the_heads_are_refused():
    lm, tokens = small_model("Llama"), ids(1, 6)
    sae = dictionary(harvested(lm, (HOOK,), tokens)[HOOK].shape[2])
    with pytest.raises(ConfigError, match=r"resid_post\.1 is not before attn_z\.1"):
        sources_of(lm, sae, [Firing(0, tokens[0])], {"late": dictionary(32, HookPoint("resid_post", 1))})
    with pytest.raises(ConfigError, match="earlier dictionaries are at one of"):
        sources_of(lm, sae, [Firing(0, tokens[0])], {"mlp": dictionary(32, HookPoint("mlp_in", 0))})
    with pytest.raises(ConfigError, match="token_norm"):
        attribute_firings(lm, dictionary(sae.d_in, token_norm=True), [Firing(0, tokens[0])])


@pytest.mark.parametrize("length", [1, 4, LONGEST])
def test_a_repeated_stretch_occurs_twice_and_nothing_else_does(length):
    row = repeated(np.arange(200), length, 3, seed=1)
    for context in row.ids:
        assert (context[BEFORE : BEFORE + length] == context[-length:]).all()
        assert len(set(context.tolist())) == len(context) - length == BEFORE + length + 1 + BETWEEN
        assert row.target == BEFORE + length
        assert context[row.target - 1] == context[-1] and context[row.target] not in context[-length:]


def test_copies_need_two_tokens_that_agree_and_strong_attention():
    row = np.array([5, 1, 2, 9, 7, 8, 1, 2])
    attention = np.zeros((8, 8))
    attention[7, 3] = 0.9  # from the second "1 2" to what followed the first
    attention[7, 5] = 0.9
    assert _copies(row, attention) == [(7, 3)]
    assert _copies(row, attention * 0.3) == []
    assert _copies(np.array([5, 4, 2, 9, 7, 8, 1, 2]), attention) == []  # one token alone agrees


def test_attention_after_prefixes_is_a_share(tiny_model):
    lm = language_model.load(FolderModel(source="folder", path=tiny_model), torch.device("cpu"))
    lengths = by_prefix_length(lm, 1, n=4)
    assert lengths.shape == (LONGEST, lm.n_heads) and (lengths >= 0).all() and (lengths.sum(1) <= lm.n_heads).all()
    assert (by_prefix_length(lm, 1, n=4) == lengths).all()
    tried = corruption(lm, 1, iter(ids(2, 30)), head=0)
    assert len(tried.text) == len(tried.corrupt) == len(tried.control)


def test_what_a_source_is_to_its_token():
    tokens = np.array([4, 6, 3, 9, 5, 3])
    kinds = [source_kind(tokens, source) for source in range(6)]
    assert kinds == [KINDS[2], KINDS[5], KINDS[4], KINDS[3], KINDS[1], KINDS[0]]


def test_attributions_are_kept_by_feature(tmp_path):
    rows = [Attribution(f, rank, 3, 8, 1.5, [1, 2], [0.5, 1.0], [1.0, 0.25, 0.25]) for f in (4, 2) for rank in (1, 0)]
    write_attributions(tmp_path, rows)
    assert attributions_of(tmp_path, 4) == [rows[1], rows[0]] and attributions_of(tmp_path, 3) == []
    assert [path.name for path in tmp_path.iterdir()] == ["attributions.duckdb"]


@pytest.fixture(scope="module")
def attributed(every_architecture, tmp_path_factory):
    run = copy_run(every_architecture, tmp_path_factory.mktemp("heads") / "bits")
    folder = run / "dictionaries" / "heads"
    done = run_here("heads", folder, "--prefixes", "4", "--contexts", "2")
    assert done.returncode == 0, done.stderr
    return run, folder, done.stdout


def test_the_command_attributes_what_the_store_holds(attributed):
    _, folder, told = attributed
    finding = Finding.read(folder / "findings" / "heads")
    figures = {f.name: f.value for f in finding.figures}
    assert finding.summary in told and figures["off by"] < 0.02  # pyright: ignore[reportOperatorIssue]
    shares = [value for name, value in figures.items() if name.startswith("reads ")]
    assert len(shares) == len(KINDS) and sum(shares) == pytest.approx(1)  # pyright: ignore[reportArgumentType]
    shaded = [table for table in finding.tables if table.is_shaded]
    assert len(shaded) == 1 and len(shaded[0].columns) == LONGEST + 1
    feature = finding.tables[0].rows[0][0]
    rows = attributions_of(folder / "findings" / "heads", feature)  # pyright: ignore[reportArgumentType]
    assert len(rows) == 2 and rows[0].act >= rows[1].act
    assert all(len(row.token_ids) == len(row.by_source) for row in rows)
    assert all(sum(row.by_source) == pytest.approx(sum(row.by_head), rel=1e-2, abs=1e-3) for row in rows)


def test_one_line_for_a_dictionary_of_another_site(every_architecture):
    done = run_here("heads", every_architecture / "dictionaries" / "topk")
    assert done.returncode != 0 and "needs a dictionary at one attn_z" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(chromium() is None, reason="no Chromium")
def test_the_route_and_the_page(attributed, browser):
    run, folder, _ = attributed
    feature = Finding.read(folder / "findings" / "heads").tables[0].rows[0][0]
    with serving(run) as address:
        route = f"{address}/api/v1/dictionaries/bits.heads/features/{feature}/attributions"
        answer = httpx.get(route)
        TypeAdapter(list[strict(responses.AttributionItem)]).validate_json(answer.content, strict=True)
        assert len(answer.json()) == 2 and len(answer.json()[0]["texts"]) == len(answer.json()[0]["by_source"])
        page = browser.new_page(viewport={"width": 390, "height": 900})
        refused = []
        page.on("console", lambda message: refused.append(message.text) if message.type == "error" else None)
        page.goto(f"{address}/#/bits.heads/features/{feature}")
        page.wait_for_selector("h2:has-text('Where it comes from')")
        settled(page)
        section = page.locator("section.card:has(h2:has-text('Where it comes from'))")
        assert section.locator("li").count() == 2 and section.locator("span[style*='color-mix']").count() > 0
        page.goto(f"{address}/#/bits.heads/findings/heads")
        page.wait_for_selector("td[style*='color-mix']")
        settled(page)
        assert violations(page) == [] and refused == []
        page.close()
