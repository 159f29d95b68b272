"""The explorer in a real headless Chromium: every page, both themes, desktop and phone width, no errors."""

from __future__ import annotations

import re

import httpx
import pytest
from fixtures import chromium

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
DICTIONARY = "tiny.first"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        yield browser
        browser.close()


@pytest.fixture(params=[("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)], ids=lambda p: f"{p[0]}-{p[1]}")
def page(request, browser, server):
    """A page that fails the test on any console error, script error or request that leaves the server."""
    theme, width = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, base_url=server)
    page = context.new_page()
    problems = []
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith((server, "data:")) else problems.append(r.url))
    yield page
    overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    context.close()
    assert not problems and overflow <= 0


def test_home_lists_and_leads_on(page):
    page.goto("/")
    page.get_by_role("link", name="tiny / first").click()
    page.get_by_role("heading", name="tiny / first").wait_for()
    assert page.get_by_role("term").filter(has_text="loss recovered (mean)").is_visible()
    assert page.get_by_role("columnheader", name="random").is_visible()
    assert page.locator("svg").count() == 3
    page.locator("a[download]", has_text="weights.safetensors").wait_for()


def test_table_sorts_filters_and_pages(page):
    page.goto(f"/#/{DICTIONARY}/features")
    page.get_by_role("button", name="density").click()
    page.locator("th[aria-sort=descending]").wait_for()
    shares = [float(t.split()[0]) for t in page.locator("tbody tr td:nth-child(4)").all_inner_texts()]
    assert len(shares) == 50 and shares == sorted(shares, reverse=True)
    assert "sort=density" in page.url
    page.get_by_role("button", name="next →").click()
    page.get_by_text(re.compile(r"51.\d+ of")).wait_for()
    page.reload()
    page.get_by_text(re.compile(r"51.\d+ of")).wait_for()


def test_the_filter_offers_the_explainers_of_the_dictionary(page, server):
    items = httpx.get(f"{server}/api/v1/dictionaries/{DICTIONARY}/explainers").raise_for_status().json()["items"]
    page.goto(f"/#/{DICTIONARY}/features")
    choice = page.locator("label", has_text="explainer").locator("select")
    choice.locator("option").nth(1).wait_for(state="attached")
    assert [o.get_attribute("value") for o in choice.locator("option").all()[1:]] == [i["explainer"] for i in items]
    rarest = items[-1]
    choice.select_option(rarest["explainer"])
    page.get_by_role("status").filter(has_text=re.compile(rf"^{rarest['features']} live")).wait_for()
    assert page.locator("tbody tr").count() == rarest["features"]


def test_concepts_open_and_lead_to_features(page, server):
    page.goto(f"/#/{DICTIONARY}/concepts")
    page.locator("summary").first.click()
    name = page.locator("summary strong").first.inner_text().split(",")[0]
    page.locator("details .chip").first.wait_for()
    page.get_by_role("searchbox").fill(name)
    page.wait_for_url(re.compile("q="))
    concepts = httpx.get(f"{server}/api/v1/dictionaries/{DICTIONARY}/concepts").raise_for_status().json()["items"]

    def says(concept):
        """Whether its name, or the label of a member, has the word."""
        return any(
            name.lower() in (text or "").lower()
            for text in (concept["name"], *(f["label"] for f in concept["features"]))
        )

    whole = [c for c in concepts if c["parent"] is None]
    held = [c["name"] for c in whole if says(c) or any(says(p) for p in concepts if p["parent"] == c["concept"])]
    assert held and page.locator("summary strong").all_inner_texts() == held
    page.get_by_role("searchbox").fill("zzzzqqqq")
    page.wait_for_function("() => document.querySelectorAll('summary').length === 0")
    page.get_by_role("searchbox").fill(name)
    page.locator("details .chip").first.wait_for(state="attached")
    page.locator("details .chip").first.click()
    page.get_by_role("heading", name="Strongest contexts").wait_for()
    page.get_by_role("heading", name="Scores", exact=True).wait_for()


def found_by(server, query):
    """The features that the API gives for a search in labels, in the order of the page."""
    address = f"{server}/api/v1/dictionaries/{DICTIONARY}/features"
    answer = httpx.get(address, params={"q": query, "sort": "low", "order": "desc"}).raise_for_status()
    return [row["feature"] for row in answer.json()["items"]]


def shown_features(page):
    """The features in the table, in order."""
    links = [a.get_attribute("href") for a in page.locator("tbody tr td:first-child a").all()]
    return [int(re.search(r"features/(\d+)", link).group(1)) for link in links]


def test_search_finds_a_label(page, server):
    page.goto(f"/#/{DICTIONARY}/features")
    page.locator("tbody tr td:nth-child(2)").first.wait_for()
    labels = page.locator("tbody tr td:nth-child(2)").all_inner_texts()
    word = next(w for label in labels for w in re.findall(r"“(\w+)”", label))
    every = shown_features(page)
    expected = found_by(server, word)
    assert len(every) == 50 and 0 < len(expected) < 50
    page.get_by_role("searchbox").fill(word)
    page.wait_for_url(re.compile("q="))
    page.wait_for_function("n => document.querySelectorAll('tbody tr').length === n", arg=len(expected))
    assert shown_features(page) == expected
    page.get_by_role("searchbox").fill("zzzzqqqq")
    page.wait_for_function("() => document.querySelectorAll('tbody tr').length === 0")
    assert found_by(server, "zzzzqqqq") == []
    page.get_by_role("searchbox").fill(word)
    page.wait_for_function("n => document.querySelectorAll('tbody tr').length === n", arg=len(expected))
    page.locator("select").first.select_option("current")
    page.get_by_text("best first").wait_for()


def test_feature_page_shows_evidence(page):
    page.goto(f"/#/{DICTIONARY}/features?sort=density&order=desc")
    page.locator("tbody tr a").first.click()
    page.get_by_role("heading", name="Strongest contexts").wait_for()
    first = page.locator("li").first
    assert first.locator(".peak").count() == 1 and first.locator(".fired").count() >= 1
    shades = first.locator(".peak").evaluate("e => getComputedStyle(e).backgroundColor")
    assert shades.startswith("rgb")
    for heading in ("Tokens it makes likelier", "Explanations", "Nearest features", "Activations"):
        assert page.get_by_role("heading", name=heading).is_visible()
    page.wait_for_url(re.compile(r"features/\d+$"))
    number = int(re.search(r"features/(\d+)", page.url).group(1))
    page.keyboard.press("j")
    page.wait_for_url(re.compile(f"features/{number + 1}$"))


def test_peaks_stand_in_one_column(page):
    if page.viewport_size["width"] < 640:
        pytest.skip("contexts wrap on a phone")
    page.goto(f"/#/{DICTIONARY}/features?sort=density&order=desc")
    page.locator("tbody tr a").first.click()
    page.get_by_role("heading", name="Strongest contexts").wait_for()
    lefts = [box["x"] for box in (e.bounding_box() for e in page.locator("section").first.locator(".peak").all())]
    assert len(lefts) > 3 and max(lefts) - min(lefts) < 2


def test_theme_can_be_switched_and_is_remembered(page):
    page.goto("/")
    before = page.evaluate("document.documentElement.dataset.theme")
    page.get_by_role("button", name="light" if before == "dark" else "dark").click()
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") != before


def test_wrong_addresses_say_so(page):
    for address in ("nonsense", "%", "features/%E0%A4%A", "%FF"):
        page.goto(f"/#/{DICTIONARY}")
        page.get_by_role("heading", name="tiny / first").wait_for()
        page.goto(f"/#/{DICTIONARY}/{address}")
        page.get_by_role("alert").filter(has_text="no such page").wait_for()
    page.goto("/#/%")
    page.get_by_role("alert").filter(has_text="no such page").wait_for()


HIDDEN = [
    0x00,
    0x1B,
    0x7F,
    0x85,
    0x9F,
    0xAD,
    0x61C,
    0x200B,
    0x200D,
    0x200F,
    0x2028,
    0x2029,
    0x202E,
    0x2060,
    0x2069,
    0xFEFF,
]
HIDDEN += [0xFFF9, 0x3164, 0xE0001, 0xE0041, 0xE007F]


def test_characters_without_a_shape_are_shown(page):
    shown = "a\u00e9\u0905\u4e2d\u0601\u2764\ufe0f\U0001f600"
    label = "".join(f"{chr(code)}{shown[i % len(shown)]}" for i, code in enumerate(HIDDEN)) + "\n\t"

    def planted(route):
        body = route.fetch().json()
        route.fulfill(json=body | {"label": label, "explanations": []})

    page.route("**/features/3", planted)
    page.goto(f"/#/{DICTIONARY}/features/3")
    heading = page.locator("h1")
    heading.filter(has_text="\u21b5\u21e5").wait_for()
    expected = "".join(f"\u00b7{shown[i % len(shown)]}" for i in range(len(HIDDEN))) + "\u21b5\u21e5"
    assert heading.text_content() == f"3 {expected}"


PAYLOADS = [
    "<script>window.pwned = 1</script>", "<img src=x onerror='window.pwned = 1'>", "\"' onmouseover='window.pwned = 1' x='",
    "javascript:window.pwned=1", "<svg onload=window.pwned=1>", "</script><iframe src=//evil.example>", "{window.pwned = 1}",
    "__proto__", "<style>@import url(//evil.example)</style>", "\u202e<b>",
]  # fmt: skip
TEXT_KEYS = {"label", "text", "name", "document_name", "problem", "run", "model", "hook", "architecture", "explainer"}


def hostile(value, number=0):
    """The same answer with a payload in every text."""
    if isinstance(value, list):
        return [hostile(item, number + i) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {
            key: PAYLOADS[(number + i) % len(PAYLOADS)] + part
            if key in TEXT_KEYS and isinstance(part, str)
            else hostile(part, number + i)
            for i, (key, part) in enumerate(value.items())
        }
    return value


def test_text_stays_text(page):
    page.add_init_script("Object.defineProperty(window, 'pwned', { set() { throw new Error('a payload ran') } })")
    page.route("**/api/v1/**", lambda route: route.fulfill(json=hostile(route.fetch().json())))
    for address in (
        "",
        f"/{DICTIONARY}",
        f"/{DICTIONARY}/features",
        f"/{DICTIONARY}/features/3",
        f"/{DICTIONARY}/concepts",
    ):
        page.goto(f"/#{address}")
        page.locator("main :text('window.pwned'), main :text('evil.example')").first.wait_for(state="attached")
        for element in page.locator("main td, main h1, main .chip, main .text span").all()[:40]:
            element.dispatch_event("mouseover")
        strange = "main script, main iframe, main svg[onload], main style, main img[onerror], [onmouseover]"
        assert page.locator(strange).count() == 0, address


def test_a_damaged_dictionary_is_shown_as_left_out(page):
    page.route(
        "**/api/v1/damage", lambda route: route.fulfill(json=[{"id": "tiny.third", "problem": "card.json is cut"}])
    )
    page.goto("/")
    page.get_by_role("link", name="tiny / first").wait_for()
    assert page.get_by_role("alert").inner_text() == "tiny.third is left out: card.json is cut"


def test_text_contrast_on_the_strongest_highlight(page):
    """WCAG AA: 4.5 to 1 between ink and the fully shaded token."""
    page.goto(f"/#/{DICTIONARY}/features?sort=density&order=desc")
    page.locator("tbody tr a").first.click()
    page.locator(".peak").first.wait_for()
    ratio = page.locator(".peak").first.evaluate(
        """e => {
            const parse = c => c.match(/[\\d.]+/g).map(Number);
            const card = parse(getComputedStyle(e.closest('.card')).backgroundColor);
            const mark = parse(getComputedStyle(e).backgroundColor);
            const alpha = mark[3] ?? 1;
            const back = [0, 1, 2].map(i => mark[i] * alpha + card[i] * (1 - alpha));
            const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
            const [a, b] = [light(parse(getComputedStyle(e).color)), light(back)].sort((x, y) => y - x);
            return (a + 0.05) / (b + 0.05);
        }"""
    )
    assert ratio >= 4.5
