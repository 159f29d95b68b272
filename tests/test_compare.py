"""Two dictionaries side by side: kinds of correspondence, correlation of firing, the command, the routes, the page."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from fixtures import chromium, copy_run, make, run_here, serving, settled, strict, violations
from pydantic import TypeAdapter

from feature_store.results.comparison import KINDS, Comparison
from sae.evaluation.comparison import Dictionary, compare, firing, kinds_of, nearest, random_cosine
from server import responses


def kinds(*arguments, **more):
    return [KINDS[number] for number in kinds_of(*map(np.asarray, arguments), **more)]


def test_nearest_is_that_of_the_whole_table():
    a, b = torch.randn(5000, 16), torch.randn(300, 16)
    cosines = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T
    near = nearest(a, b)
    assert near.of_a.tolist() == cosines.argmax(1).tolist() and near.of_b.tolist() == cosines.argmax(0).tolist()
    assert np.allclose(near.cosine_a, cosines.max(1).values, atol=1e-5)
    assert np.allclose(near.cosine_b, cosines.max(0).values, atol=1e-5)


def test_every_kind_of_correspondence():
    e = torch.eye(12)
    a = torch.stack([e[0], e[1], e[2], e[2] + 0.1 * e[11], e[3], e[4], e[5]])
    b = torch.stack([e[0], e[1] + 0.4 * e[6], e[1] - 0.4 * e[6], e[2], e[3], e[7], e[4] + 0.2 * e[8]])
    near = nearest(a, b)
    alive = np.ones(7, bool)
    alive[4] = False
    this = kinds(near.of_a, near.cosine_a, near.of_b, near.cosine_b, alive=alive)
    other = kinds(near.of_b, near.cosine_b, near.of_a, near.cosine_a, alive=np.ones(7, bool))
    assert this == ["matched", "split", "merged", "merged", "dead", "matched", "alone"]
    assert other == ["matched", "merged", "merged", "split", "matched", "alone", "matched"]


def test_a_feature_whose_nearest_has_a_nearer_one_is_near():
    # b0 is nearest to both a0 and a1, but a1 reaches it below the bound: a0 is matched; a1 is alone.
    assert kinds([0, 0], [0.9, 0.6], [0], [0.9], alive=np.ones(2, bool)) == ["matched", "alone"]
    # The nearest of b0 is a1, of which b1 is nearest: a0 finds b0, but is nobody's nearest.
    assert kinds([0, 1], [0.8, 0.95], [1, 1], [0.6, 0.95], alive=np.ones(2, bool)) == ["near", "matched"]


def test_correlation_is_pearsons_over_all_tokens():
    one, two = make("topk", d_sae=32, seed=1), make("topk", d_sae=48, seed=2)
    channel = one.config.channels[0]
    x = torch.randn(500, one.d_in)
    pairs = [(np.arange(32), np.arange(32)), (np.array([3]), np.array([40]))]
    seen = firing(({channel: part} for part in x.split(77)), (one, two), pairs)
    codes = [dense(sae, x).double().numpy() for sae in (one, two)]
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = np.corrcoef(codes[0].T, codes[1].T)[:32, 32:]
    assert np.allclose(seen.correlations[0], np.diag(whole[:, :32]), atol=1e-6, equal_nan=True)
    assert np.allclose(seen.correlations[1], whole[3, 40], atol=1e-6, equal_nan=True)
    assert seen.tokens == 500 and seen.alive_a.tolist() == (codes[0].max(0) > 0).tolist()


def dense(sae, x):
    code = sae.encode(x)
    return torch.zeros(len(x), sae.d_sae).scatter_add_(1, code.top_indices.long(), code.top_acts.detach())


def test_random_directions_are_told_apart():
    rows = torch.randn(512, 64)
    assert 0.2 < random_cosine(rows, 0) < 0.7 and random_cosine(rows, 0) == random_cosine(rows, 0)
    assert random_cosine(rows[:, :8], 0) > 0.9


def test_a_dictionary_and_itself_are_matched_everywhere():
    sae = make("topk", d_sae=64, seed=0)
    one = Dictionary("a.a", "0" * 64, sae)
    found = compare(one, one, [], twin=one, seed=0)
    assert found.this.counts()["matched"] == 64 and found.twin is not None and found.twin.matched == 1
    assert found.tokens == 0 and found.random_correlation is None and set(found.this.correlation) == {None}
    assert Comparison.parse(json.dumps(found.as_json()).encode(), "here") == found


@pytest.fixture(scope="module")
def compared(finished, tmp_path_factory):
    run = copy_run(finished, tmp_path_factory.mktemp("compared") / "tiny")
    folders = [run / "dictionaries" / name for name in ("first", "second")]
    done = run_here("compare", *folders, "--twin", folders[0], "--tokens", 2000)
    assert done.returncode == 0, done.stderr
    assert "tiny.first: " in done.stdout and "100.0% are matched in its twin" in done.stdout
    return run


def test_the_command_says_what_is_wrong(finished, tmp_path):
    first = finished / "dictionaries" / "first"
    assert "a run of 2 dictionaries" in run_here("compare", finished, first, "--tokens", 0).stderr
    assert run_here("compare", first, first, "--tokens", -1).returncode == 2
    assert run_here("compare", first, tmp_path).returncode == 66


def test_directions_alone_need_no_model(finished, tmp_path):
    run = copy_run(finished, tmp_path / "moved")
    first, second = (run / "dictionaries" / name for name in ("first", "second"))
    assert run_here("compare", first, second, "--tokens", 0).returncode == 0
    found = Comparison.read(first / "comparisons" / "tiny.second")
    assert found.tokens == 0 and found.twin is None and sum(found.this.counts().values()) == 64


def test_routes_and_page(compared, request):
    with serving(compared) as address:
        base = f"{address}/api/v1/dictionaries/tiny.first/comparisons"
        [item] = httpx.get(base).json()
        assert item["other"] == "tiny.second" and item["is_served"] and item["tokens"] > 0
        answer = httpx.get(f"{base}/tiny.second")
        TypeAdapter(strict(responses.ComparisonDetail)).validate_json(answer.content, strict=True)
        assert answer.json()["is_current"] and sum(answer.json()["this"]["counts"].values()) == 64
        assert httpx.get(f"{base}/nothing").status_code == 404
        assert httpx.get(f"{address}/api/v1/dictionaries/tiny.second/comparisons").json() == []
        if chromium() is not None:
            look_at(request.getfixturevalue("browser"), address)

    damaged = compared / "dictionaries" / "first" / "comparisons" / "tiny.second" / Path("comparison.json")
    damaged.write_text("{", encoding="utf-8")
    with serving(compared) as address:
        refused = httpx.get(f"{address}/api/v1/dictionaries/tiny.first/comparisons/tiny.second")
        assert refused.status_code == 404 and "cannot be read" in refused.json()["error"]["message"]


def look_at(browser, address):
    for theme, width in (("light", 1280), ("dark", 360)):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, base_url=address)
        page = context.new_page()
        page.goto("/#/tiny.first")
        page.get_by_role("link", name="tiny.second").click()
        page.get_by_role("heading", name="Two dictionaries").wait_for()
        settled(page)
        page.locator("main tbody a").first.wait_for()
        assert violations(page) == [] and page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        page.get_by_role("button", name="alone").first.click()
        page.wait_for_url(lambda url: "kind=alone" in url)
        context.close()
