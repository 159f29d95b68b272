"""A feature's page as a widget: what Python sends, and what a browser makes of it."""

from __future__ import annotations

import json

import pytest
from fixtures import chromium, violations

from sae import show
from sae.errors import ConfigError

PAGE = """<!doctype html><html lang="en"><title>notebook</title><body data-jp-theme-light="THEME"><main><h1>A notebook</h1><div id="cell"></div></main>
<script type="module">
  import widget from "./widget.js";
  const state = STATE, listeners = new Set();
  window.model = {
    get: (name) => state[name], on: (_, listener) => listeners.add(listener), off: (_, listener) => listeners.delete(listener),
    set: (name, value) => { state[name] = value; }, save_changes: () => { window.asked = state.feature; },
    change: (shown) => { state.shown = shown; listeners.forEach((listener) => listener()); },
  };
  window.close_widget = widget.render({ model: window.model, el: document.getElementById("cell") });
</script></body></html>"""


@pytest.fixture(scope="module")
def widget(finished):
    return show(finished / "dictionaries" / "first", 3)


def test_the_widget_holds_what_the_api_says(widget, server):
    import httpx

    base = f"{server}/api/v1/dictionaries/tiny.first/features"
    for feature in (0, 3):
        widget.feature = feature
        assert json.loads(json.dumps(widget.shown["detail"])) == httpx.get(f"{base}/{feature}").json()
        assert json.loads(json.dumps(widget.shown["contexts"])) == httpx.get(f"{base}/{feature}/contexts").json()
    assert widget.dictionary == "tiny.first"


def test_a_number_without_a_feature_is_refused(widget, finished):
    with pytest.raises(ConfigError, match="features 0 to 63"):
        widget.feature = 64
    with pytest.raises(ConfigError, match="features 0 to 63"):
        show(finished / "dictionaries" / "first", -1)
    assert show(finished / "dictionaries" / "first", 0).shown["detail"]["feature"] == 0


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("light", "width"), [("true", 1280), ("false", 400)])
def test_a_browser_shows_it_and_links_ask_for_features(widget, browser, light, width):
    widget.feature = 3
    state = {"dictionary": widget.dictionary, "feature": 3, "shown": widget.shown}
    page = browser.new_page(viewport={"width": width, "height": 900})
    problems = []
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    html = PAGE.replace("THEME", light).replace("STATE", json.dumps(state).replace("</", "<\\/"))
    page.route("http://notebook.test/", lambda route: route.fulfill(body=html, content_type="text/html"))
    page.route("**/widget.js", lambda route: route.fulfill(body=widget._esm, content_type="text/javascript"))
    page.goto("http://notebook.test/")

    page.get_by_role("heading", name="Strongest contexts").wait_for()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    other = page.get_by_role("heading", name="Nearest features").locator("..").locator("a").first
    other.click()
    asked = page.evaluate("window.asked")
    assert asked in [n["feature"] for n in widget.shown["detail"]["neighbours"]]

    widget.feature = asked
    page.evaluate("shown => window.model.change(shown)", widget.shown)
    page.get_by_role("heading", name=str(asked)).first.wait_for()
    page.evaluate("window.close_widget()")
    assert page.get_by_role("heading", name="Strongest contexts").count() == 0
    page.close()
    assert problems == []
