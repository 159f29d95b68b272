"""A site of some features: files in place of the API, shown by a plain file server."""

from __future__ import annotations

import functools
import json
import threading
from contextlib import closing
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from fixtures import chromium, opened_chromium, run_here, settled, violations

from feature_store.dictionary_files import DictionaryCard
from feature_store.people.database import People
from feature_store.people.entry import Place, checked


class Quiet(SimpleHTTPRequestHandler):
    """A plain file server."""

    def log_message(self, format, *args):
        """Says nothing."""


@pytest.fixture(scope="module")
def people_file(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("people") / "people.sqlite"
    weights = DictionaryCard.read(finished / "dictionaries" / "first").weights_sha256
    with closing(People(path, create=True)) as people:
        for feature in (7, 3):
            people.write("ada", Place("tiny.first", weights, feature), checked("list", "paper", "yes"))
        people.write("ada", Place("tiny.first", weights, 3), checked("label", "", "what I think"))
    return path


@pytest.fixture(scope="module")
def folder(finished, people_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "site"
    done = run_here(
        "site", finished / "dictionaries" / "first", "--list", "ada/paper", "--people", people_file, "--out", out
    )
    assert done.returncode == 0 and "tiny.first: 2 features" in done.stdout, done.stderr
    return out


@pytest.fixture
def browser():
    """One for each test, since the command runs an event loop of its own."""
    with opened_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_files_are_the_bodies_of_the_api(folder, server):
    api = folder / "api" / "v1" / "dictionaries" / "tiny.first"
    base = f"{server}/api/v1/dictionaries/tiny.first"
    for path in ("features/7", "features/3/contexts", "features/3/judged"):
        assert json.loads((api / f"{path}.json").read_bytes()) == httpx.get(f"{base}/{path}").json()
    table = json.loads((api / "features.json").read_bytes())
    assert [row["feature"] for row in table["items"]] == [7, 3] and table["total"] == 2
    members = {m["feature"] for c in json.loads((api / "concepts.json").read_bytes())["items"] for m in c["features"]}
    assert members <= {3, 7} and not (api / "features" / "5.json").exists()


def test_what_cannot_be_written_is_told(finished, folder, people_file, tmp_path):
    first = finished / "dictionaries" / "first"
    for arguments, code, word in (
        (["--out", folder], 2, "there already"),
        (["--out", tmp_path / "a", "--list", "ada/paper"], 2, "--people"),
        (["--out", tmp_path / "a", "--features", "x"], 2, "3,17,42"),
        (["--out", tmp_path / "a", "--features", "64"], 2, "no feature"),
        (["--out", tmp_path / "a", "--tag", "none", "--people", people_file], 2, "no feature"),
        (["--out", tmp_path / "a", "--people", tmp_path / "none"], 66, "no such file"),
    ):
        done = run_here("site", first, *arguments)
        assert done.returncode == code and word in done.stderr, (arguments, done.stderr)
    assert not list(tmp_path.iterdir())
    best = run_here("site", finished, "--best", 5, "--out", tmp_path / "best")
    assert "tiny.first: 5 features" in best.stdout and "tiny.second: 5 features" in best.stdout


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 360)])
def test_a_browser_reads_it(browser, address, theme, width):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, base_url=address)
    page, problems = context.new_page(), []
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("response", lambda r: problems.append(r.url) if r.status >= 400 else None)
    page.goto("/")
    page.get_by_role("heading", name="tiny / first").wait_for()
    settled(page)
    assert violations(page) == []
    page.get_by_role("link", name="features", exact=True).click()
    page.get_by_text("2 live features").wait_for()
    assert violations(page) == []
    first, second = (text.split()[0] for text in page.locator("main tbody tr").all_inner_texts())
    page.locator("main tbody a").first.click()
    page.get_by_role("heading", name="Strongest contexts").wait_for()
    page.get_by_text("Which windows it got wrong").click()
    settled(page)
    assert violations(page) == []
    page.keyboard.press("j")
    page.wait_for_url(lambda url: url.endswith(f"/features/{second}"))
    assert {first, second} == {"3", "7"}
    page.goto(f"{address}/#/tiny.first/features/3")
    page.get_by_text("what I think").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    context.close()
    assert problems == []
