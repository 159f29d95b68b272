"""Contrasts of two sets of texts: planted differences, false discoveries, the sparse map, directions, command and page."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest
from fixtures import chromium, copy_run, run_here, serving, settled, strict, violations
from pydantic import TypeAdapter

from feature_store.results.findings import Finding
from sae.apply.contrast.affine_map import fit_map
from sae.apply.contrast.sets import contrast
from sae.apply.direction import decompose, difference_of_means, principal_difference, weighted_direction
from sae.apply.removal import matched
from sae.errors import DataError
from server import responses


def fires(n, rates, seed):
    return np.random.default_rng(seed).random((n, len(rates))) < rates


def test_a_planted_difference_is_found_and_nothing_else():
    rates = np.full(400, 0.2)
    other = rates.copy()
    other[7], other[9] = 0.8, 0.0
    result = contrast(fires(80, other, 1), fires(80, rates, 2))
    assert result.ranked(1) == [7] and result.ranked(-1) == [9]
    assert result.low[7] < np.log(0.8 * 0.8 / (0.2 * 0.2)) < result.high[7]
    swapped = contrast(fires(80, rates, 2), fires(80, other, 1))
    assert np.allclose(swapped.log_odds, -result.log_odds) and swapped.ranked(-1) == [7]


def test_sets_that_do_not_differ_have_few_discoveries_and_intervals_cover():
    n_with_any, covered, n_fires = 0, 0, 0
    for seed in range(40):
        result = contrast(fires(60, np.full(200, 0.3), 2 * seed), fires(60, np.full(200, 0.3), 2 * seed + 1))
        n_with_any += bool(result.ranked(1) or result.ranked(-1))
        covered += int(((result.low <= 0) & (result.high >= 0)).sum())
        n_fires += 200
    assert n_with_any <= 5 and 0.93 <= covered / n_fires <= 0.99


def test_features_that_never_fire_have_no_rate_and_small_sets_are_refused():
    result = contrast(np.zeros((9, 3), bool), np.zeros((9, 3), bool))
    assert np.isnan(result.q).all() and result.ranked(1) == []
    with pytest.raises(DataError, match="at least 8"):
        contrast(np.zeros((9, 3), bool), np.zeros((4, 3), bool))


def test_controls_fire_as_often_and_are_others():
    rate = np.random.default_rng(0).random(500)
    chosen = [3, 8, 9, 100]
    others = matched(chosen, rate, np.random.default_rng(1))
    assert len(set(others)) == 4 and not set(others) & set(chosen)
    assert np.abs(rate[others] - rate[chosen]).max() < 0.05
    with pytest.raises(DataError, match="are wanted as a control"):
        matched([0, 1], np.array([0.5, 0.5, 0.5]), np.random.default_rng(1))


def test_the_map_touches_what_differs_and_makes_it_alike():
    rng = np.random.default_rng(0)
    source, target = rng.exponential(1, (64, 30)), rng.exponential(1, (50, 30))
    target[:, 4] = target[:, 4] * 3 + 5
    fitted = fit_map(source, target)
    assert fitted.support[0] == 4 and len(fitted.support) < 6
    assert fitted.after[4] < fitted.before[4] / 2
    untouched = [f for f in range(30) if f not in fitted.support]
    assert (fitted.scale[untouched] == 1).all() and (fitted.shift[untouched] == 0).all()
    closer = fit_map(source, target, penalty=1e-3)
    assert closer.after[4] < 0.05 * closer.before[4] and len(closer.support) > len(fitted.support)
    assert (closer.after <= closer.before + 1e-9).all()
    scaled = fit_map(source * 100, target * 100)
    assert scaled.support == fitted.support and np.allclose(scaled.shift, fitted.shift * 100)


def test_the_map_is_the_least_of_its_objective():
    """Beside scipy's search over both numbers of one latent."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(1)
    z, t = np.sort(rng.random(40)), np.sort(rng.random(40) * 2 + 1)
    fitted = fit_map(z[:, None], t[:, None], penalty=0.3)
    unit = np.sqrt((z.var() + t.var()) / 2 + (z.mean() - t.mean()) ** 2 / 4)

    def objective(p):
        return np.square(p[0] * z / unit + p[1] - t / unit).mean() + 0.3 * (abs(p[0] - 1) + abs(p[1]))

    best = min(
        (minimize(objective, start, method="Nelder-Mead") for start in ((1, 0), (2, 1), (0, 2))), key=lambda r: r.fun
    )
    assert objective([fitted.scale[0], fitted.shift[0] / unit]) <= best.fun + 1e-3


def test_directions_and_their_parts():
    rng = np.random.default_rng(0)
    rows = np.linalg.qr(rng.normal(size=(32, 32)))[0][:20]
    a, b = rng.normal(size=(40, 32)), rng.normal(size=(40, 32))
    a = b + 3 * rows[5] - 2 * rows[11]
    parts = decompose(difference_of_means(a, b), rows, 4)
    assert parts.features == [5, 11] and np.allclose(parts.weights, [3, -2]) and parts.left < 1e-12
    assert np.allclose(principal_difference(a, b), difference_of_means(a, b))
    x = np.vstack([a, b])
    only_a = weighted_direction(x, np.repeat([1.0, 0.0], 40))
    assert np.allclose(only_a, a.mean(0) - x.mean(0))
    assert np.allclose(weighted_direction(x, np.full(80, 2.0)), 0)
    for wrong in (np.zeros(80), np.full(80, -1.0)):
        with pytest.raises(DataError, match="must not be negative"):
            weighted_direction(x, wrong)


@pytest.fixture(scope="module")
def contrasted(finished, tmp_path_factory):
    """A run whose first dictionary has a contrast of texts with and without a word."""
    home = tmp_path_factory.mktemp("contrast")
    run = home / "tiny"
    copy_run(finished, run)
    words = ["girl", "dog", "tree", "ball", "house", "sun", "park", "mom", "toy", "red"]
    for name, word in (("a.txt", "happy"), ("b.txt", "went")):
        texts = [f"The {w} was {word} and the {v} too." for w in words for v in words[:3]]
        (home / name).write_text("\n".join(texts), encoding="utf-8")
    done = run_here("contrast", run / "dictionaries" / "first", home / "a.txt", home / "b.txt", "--ablate", "2")
    return run, home, done


def test_the_command_says_and_keeps_what_differs(contrasted):
    run, home, done = contrasted
    assert done.returncode == 0, done.stderr
    assert "features fire on more texts of A" in done.stdout and "loss on A without them" in done.stdout
    finding = Finding.read(run / "dictionaries" / "first" / "findings" / "contrast")
    assert finding.title == "a.txt against b.txt" and finding.settings["texts_a"] == 30
    assert str(home) not in json.dumps(finding.as_json())  # nobody's folders are published
    features = finding.tables[0].rows
    assert features and all(row[1] > row[2] and row[4] > 0 and row[6] <= 0.05 for row in features)  # pyright: ignore
    steering = next(t for t in finding.tables if t.title == "Directions at equal disturbance")
    assert len(steering.rows) == 5 and {row[0] for row in steering.rows} == {"A"}
    assert all(row[-2] <= row[-3] <= row[-1] for row in steering.rows)  # pyright: ignore
    names = [figure.name for figure in finding.figures]
    assert names[0] == "loss on A without them" and all(f.low <= f.value <= f.high for f in finding.figures)  # pyright: ignore
    again = run_here(
        "contrast", run / "dictionaries" / "first", home / "a.txt", home / "b.txt", "--ablate", "2", "--name", "again"
    )
    assert again.returncode == 0
    other = Finding.read(run / "dictionaries" / "first" / "findings" / "again")
    assert other == finding


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("A", "A"), "texts are in both files"),
        (("A", "missing.txt"), "missing.txt"),
        (("A", "B", "--name", "../x"), "a name is lower case letters"),
        (("A", "B", "--q", "2"), "a rate between 0 and 1"),
        (("A", "B", "--texts", "5"), "at least 8 of each set"),
    ],
)
def test_one_line_for_bad_input(contrasted, arguments, words):
    run, home, _ = contrasted
    files = {"A": home / "a.txt", "B": home / "b.txt"}
    done = run_here("contrast", run / "dictionaries" / "first", *(files.get(a, a) for a in arguments))
    assert done.returncode != 0 and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(chromium() is None, reason="no Chromium")
def test_the_routes_and_the_page_of_a_finding(contrasted, browser):
    run, _, _ = contrasted
    (run / "dictionaries" / "first" / "findings" / "broken").mkdir(exist_ok=True)
    (run / "dictionaries" / "first" / "findings" / "broken" / "finding.json").write_text("{")
    with serving(run) as address:
        base = f"{address}/api/v1/dictionaries/tiny.first/findings"
        listed = httpx.get(base).json()
        assert {item["name"] for item in listed} - {"again"} == {"contrast"}
        answer = httpx.get(f"{base}/contrast")
        TypeAdapter(strict(responses.FindingDetail)).validate_json(answer.content, strict=True)
        assert answer.json()["is_current"] and httpx.get(f"{base}/none").status_code == 404
        assert httpx.get(f"{base}/broken").status_code == 404
        table = next(t for t in answer.json()["tables"] if t["rows"] and t["columns"][0]["kind"] == "feature")
        feature = table["rows"][0][0]
        about = httpx.get(f"{base.removesuffix('/findings')}/features/{feature}/findings")
        TypeAdapter(list[strict(responses.FindingAbout)]).validate_json(about.content, strict=True)
        assert {"contrast", table["title"]} <= {text for item in about.json() for text in (item["name"], item["table"])}
        assert all(feature in row or str(feature) in str(row) for item in about.json() for row in item["rows"])
        assert httpx.get(f"{base.removesuffix('/findings')}/features/99999999/findings").json() == []

        page = browser.new_page()
        page.goto(f"{address}/#/tiny.first")
        page.click("a[href$='findings/contrast']")
        page.wait_for_selector("h1:has-text('a.txt against b.txt')")
        settled(page)
        assert page.locator("main table").count() == 7 and violations(page) == []
        page.locator("main table a").first.click()
        page.wait_for_url("**/features/*")
        page.wait_for_selector("h2:has-text('Found about it')")
        settled(page)
        assert page.locator("section h3 a[href$='findings/contrast']").count() >= 1 and violations(page) == []
        page.close()
