"""People's input in a real browser: a key from an address, labels and votes by keyboard, blind triage, undo."""

from __future__ import annotations

import re
from contextlib import closing

import pytest
from fixtures import chromium, serving, settled, violations

from feature_store.people.database import People

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
D = "#/tiny.first"


@pytest.fixture
def file(tmp_path):
    with closing(People(tmp_path / "people.sqlite", create=True)) as people:
        yield people


@pytest.fixture
def address(finished, file):
    with serving(finished, "--people", str(file.path)) as address:
        yield address


@pytest.fixture(params=[("light", 1280), ("dark", 390)], ids=lambda p: f"{p[0]}-{p[1]}")
def page(request, browser, address):
    theme, width = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, base_url=address)
    page, problems = context.new_page(), []
    expected = "the server responded with a status of 401"  # the browser's own line for a key that nobody has
    page.on(
        "console",
        lambda m: problems.append(m.text) if m.type in ("error", "warning") and expected not in m.text else None,
    )
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    context.close()
    assert not problems and overflow <= 0


def sign_in(page, key):
    page.goto(f"/#/key/{key}")
    page.wait_for_url(lambda url: "key" not in url)


def test_without_a_key_nothing_can_be_said(page, file):
    page.goto(f"/{D}/features/3")
    settled(page)
    assert page.get_by_text("your label").count() == 0
    page.goto(f"/{D}/triage")
    page.get_by_role("link", name="Sign in").click()
    page.get_by_label("your key").fill("sk-wrong")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("nobody has this key").wait_for()
    assert violations(page) == []
    page.get_by_label("your key").fill(file.add_key("ada", ["write"]))
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("ada; your key allows: write").wait_for()


def test_label_tag_vote_and_undo_by_keyboard(page, file):
    sign_in(page, file.add_key("ada", ["read", "write"]))
    page.goto(f"/{D}/features/3")
    page.get_by_text("your label").wait_for()
    page.keyboard.press("l")
    page.keyboard.type("what I think")
    page.keyboard.press("Enter")
    page.get_by_role("heading", level=1).filter(has_text="what I think").wait_for()
    page.locator("main h1").focus()
    page.keyboard.press("t")
    page.keyboard.type("odd")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="odd", exact=True).wait_for()
    page.get_by_role("button", name=re.compile("” fits: 0")).first.click()
    page.get_by_role("button", name=re.compile("” fits: 1")).wait_for()
    assert violations(page) == []

    page.locator("main h1").focus()
    page.keyboard.press("z")
    page.get_by_role("button", name=re.compile("” fits: 1")).wait_for(state="detached")
    page.keyboard.press("z")
    page.get_by_role("link", name="odd", exact=True).wait_for(state="detached")
    page.goto(f"/{D}/search?q=think&kind=people")
    page.get_by_text("ada labelled it “what I think”").wait_for()


def test_what_is_being_typed_stays_when_entries_arrive(page, file):
    sign_in(page, file.add_key("ada", ["read", "write"]))
    held = []
    page.route("**/features/3/people*", lambda route: held.append(route))
    page.goto(f"/{D}/features/3")
    field = page.get_by_label("your label")
    field.fill("what I think")
    while not held:
        page.wait_for_timeout(20)
    for route in held:
        route.continue_()
    settled(page)
    assert field.input_value() == "what I think"


def test_a_list_is_a_table_with_an_address(page, file):
    sign_in(page, file.add_key("ada", ["write"]))
    for feature in (3, 5):
        page.goto(f"/{D}/features/{feature}")
        page.get_by_label("put it into your list").fill("for the paper")
        page.get_by_label("put it into your list").press("Enter")
        page.get_by_role("link", name="in ada's “for the paper”").wait_for()
    settled(page)  # the link moves while the rest of the page arrives
    page.get_by_role("link", name="in ada's “for the paper”").click()
    page.get_by_text("The list “ada/for the paper”").wait_for()
    page.wait_for_function("() => document.querySelectorAll('main tbody tr').length === 2")
    page.goto(f"/{D}/people")
    page.get_by_role("link", name="for the paper").wait_for()
    settled(page)
    assert violations(page) == []


def test_triage_is_blind_until_the_rating_and_goes_by_keyboard(page, file):
    sign_in(page, file.add_key("ada", ["rate"]))
    page.goto(f"/{D}/triage")
    page.get_by_role("heading", name="What do they have in common?").wait_for()
    first = page.get_by_role("status").first.inner_text().split(";")[0]
    assert "The machine says" not in page.locator("main").inner_text()
    assert violations(page) == []
    page.keyboard.press("4")
    page.get_by_text("You said 4").wait_for()
    page.keyboard.press("z")
    page.get_by_role("heading", name="What do they have in common?").wait_for()
    page.keyboard.press("2")
    page.get_by_text("You said 2").wait_for()
    page.keyboard.press("y")
    page.wait_for_function(f"() => !document.querySelector('main').innerText.includes('{first};')")
    said = [(r.entry.kind, r.entry.value) for r in file.records()]
    assert said == [("rating", "2"), ("vote", "up")]
