"""The explorer in a real headless Chromium: every page, both themes, desktop and phone width, no errors."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from fixtures import chromium, run_here, serving, settled, violations

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
DICTIONARY = "tiny.first"


@pytest.fixture(params=[("light", 1280), ("dark", 360)], ids=lambda p: f"{p[0]}-{p[1]}")
def page(request, browser, server):
    """A page that fails the test on any console error, script error or request that leaves the server."""
    theme, width = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, base_url=server)
    page = context.new_page()
    problems = []
    expected = re.compile("the server responded with a status of 4(04|22)")  # the browser's own line for a refusal
    page.on(
        "console",
        lambda m: problems.append(m.text) if m.type in ("error", "warning") and not expected.search(m.text) else None,
    )
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith((server, "data:")) else problems.append(r.url))
    yield page
    overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    context.close()
    assert not problems and overflow <= 0


STATES = (
    "", f"/{DICTIONARY}", f"/{DICTIONARY}/features", f"/{DICTIONARY}/features?min_low=0.5&explainer=token&q=to", f"/{DICTIONARY}/features/3",
    f"/{DICTIONARY}/concepts", f"/{DICTIONARY}/search?q=the", f"/{DICTIONARY}/search?q=the cat sat&kind=sentence", f"/{DICTIONARY}/search?q=zzzzqqqq",
    f"/{DICTIONARY}/documents/0?at=5", f"/{DICTIONARY}/map", f"/{DICTIONARY}/map?colour=low&q=the", f"/{DICTIONARY}/compare/3/4", f"/{DICTIONARY}/features/3?embed=true", f"/{DICTIONARY}/features/99999", f"/{DICTIONARY}/nonsense",
)  # fmt: skip


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390), ("light", 320)])
def test_every_state_is_accessible(browser, server, theme, width):
    """axe finds nothing by the rules of WCAG 2.2 AA and of good practice; every page has a title, and fits the window."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, base_url=server)
    page = context.new_page()
    for address in STATES:
        page.goto("about:blank")
        page.goto(f"/#{address}")
        settled(page)
        assert (address, violations(page)) == (address, [])
        assert page.title().endswith(" · saedex"), address
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0, address
    context.close()


def test_home_lists_and_leads_on(page):
    page.goto("/")
    page.get_by_text("splits them into features").wait_for()
    page.locator("mark").first.wait_for()
    page.get_by_role("link", name="tiny / first").click()
    page.get_by_role("heading", name="tiny / first").wait_for()
    assert page.title() == "tiny.first · saedex"
    assert page.get_by_role("term").filter(has_text="loss recovered (mean)").is_visible()
    assert page.get_by_role("columnheader", name="random").is_visible()
    page.get_by_role("heading", name="Norms of activations").wait_for()
    page.get_by_text("All files").click()
    page.locator("a[download]", has_text="weights.safetensors").wait_for()


def test_with_one_dictionary_home_is_that_dictionary(page):
    listed = lambda route: route.fulfill(json=route.fetch().json()[:1])  # noqa: E731
    page.route("**/api/v1/dictionaries", listed)
    page.goto("/")
    page.get_by_role("heading", name="tiny / first").wait_for()
    page.get_by_role("searchbox", name="Search features").fill("the")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("search"))
    page.get_by_role("heading", level=2).first.wait_for()


def test_a_rectangle_in_the_scatter_filters_the_table(page):
    page.goto(f"/#/{DICTIONARY}")
    canvas = page.locator("canvas")
    canvas.scroll_into_view_if_needed()
    settled(page)
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.05)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.97, box["y"] + box["height"] * 0.5, steps=4)
    page.mouse.up()
    page.wait_for_url(re.compile("min_density=.*max_density=.*min_low=.*max_low="))
    page.get_by_text("Filters (2)").wait_for()


def test_table_sorts_filters_and_pages(page):
    page.goto(f"/#/{DICTIONARY}/features")
    page.get_by_role("button", name="density").click()
    page.locator("th[aria-sort=descending]", has_text="density").wait_for()
    page.wait_for_function("() => document.querySelectorAll('.busy').length === 0")
    shares = [float(t.split()[0]) for t in page.locator("main tbody tr td:nth-child(4)").all_inner_texts()]
    assert len(shares) == 50 and shares == sorted(shares, reverse=True)
    assert "sort=density" in page.url
    page.get_by_role("button", name="score").click(modifiers=["Shift"])
    page.wait_for_url(re.compile("sort=density%2Clow"))
    page.get_by_role("button", name="next →").click()
    page.get_by_text(re.compile(r"51.\d+ of")).wait_for()
    page.reload()
    page.get_by_text(re.compile(r"51.\d+ of")).wait_for()


def test_typing_keeps_the_table_in_place(page):
    """Nothing flashes: the former rows stay until the next ones are there."""
    page.goto(f"/#/{DICTIONARY}/features")
    page.locator("main tbody tr").first.wait_for()
    page.evaluate("""() => {
        window.emptied = 0;
        new MutationObserver(() => { if (!document.querySelector('main tbody tr')) window.emptied++; })
            .observe(document.querySelector('main'), { childList: true, subtree: true });
    }""")
    page.get_by_placeholder("all of these words").press_sequentially("token", delay=40)
    page.wait_for_url(re.compile("q=token"))
    settled(page)
    assert page.evaluate("window.emptied") == 0


def test_the_filter_offers_the_explainers_of_the_dictionary(page, server):
    items = httpx.get(f"{server}/api/v1/dictionaries/{DICTIONARY}/explainers").raise_for_status().json()["items"]
    page.goto(f"/#/{DICTIONARY}/features")
    page.get_by_text("Filters").click()
    boxes = page.locator(".kinds label")
    boxes.first.wait_for()
    names = [re.sub(r"\s*\(.*", "", text).strip() for text in boxes.all_inner_texts()]
    assert names == [item["explainer"].replace("_", " ") for item in items]
    rarest = items[-1]
    boxes.last.click()
    page.get_by_role("status").filter(has_text=re.compile(rf"^{rarest['features']} live")).wait_for()
    assert page.locator("main tbody tr").count() == rarest["features"]


def test_the_filter_is_a_file(page):
    page.goto(f"/#/{DICTIONARY}/features?q=token&min_low=0.5")
    page.get_by_text("label comes from").wait_for()  # which moves the link down
    settled(page)
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    shown = page.get_by_role("status").inner_text().split()[0]
    assert lines[0].startswith("feature,density") and len(lines) == int(shown) + 1


def test_concepts_open_and_lead_to_features(page, server):
    page.goto(f"/#/{DICTIONARY}/concepts")
    page.locator("summary").first.wait_for()
    assert page.locator(".first .chip").first.is_visible()
    name = page.locator("summary strong").first.inner_text().split(",")[0]
    page.get_by_label("Search concepts").fill(name)
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
    page.get_by_label("Search concepts").fill("zzzzqqqq")
    page.wait_for_function("() => document.querySelectorAll('summary').length === 0")
    page.get_by_label("Search concepts").fill(name)
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
    links = [a.get_attribute("href") for a in page.locator("main tbody tr td:first-child a").all()]
    return [int(re.search(r"features/(\d+)", link).group(1)) for link in links]


def test_the_table_finds_words_of_labels(page, server):
    page.goto(f"/#/{DICTIONARY}/features")
    page.locator("main tbody tr td:nth-child(2)").first.wait_for()
    labels = page.locator("main tbody tr td:nth-child(2)").all_inner_texts()
    word = next(w for label in labels for w in re.findall(r"“(\w+)”", label))
    expected = found_by(server, word)
    assert len(shown_features(page)) == 50 and 0 < len(expected) < 50
    field = page.get_by_placeholder("all of these words")
    field.fill(word)
    page.wait_for_url(re.compile("q="))
    page.wait_for_function("n => document.querySelectorAll('main tbody tr').length === n", arg=len(expected))
    assert shown_features(page) == expected
    field.fill("zzzzqqqq")
    page.get_by_role("link", name="Search explanations and tokens too").wait_for()
    assert found_by(server, "zzzzqqqq") == []


def test_a_search_says_why_and_leads_through_its_results(page, server):
    page.goto(f"/#/{DICTIONARY}/search?q=cat&kind=current")
    page.get_by_role("heading", name="Fires on the token").wait_for()
    page.get_by_text(re.compile("of its strong firings")).first.wait_for()
    hits = httpx.get(f"{server}/api/v1/dictionaries/{DICTIONARY}/search?q=cat&kind=current").json()["items"]
    numbers = [hit["feature"] for hit in hits]
    assert len(numbers) > 2
    page.locator("main tbody a").nth(1).click()
    page.wait_for_url(re.compile(f"features/{numbers[1]}$"))
    settled(page)
    page.get_by_role("link", name=f"{numbers[2]} →").wait_for()
    page.keyboard.press("j")
    page.wait_for_url(re.compile(f"features/{numbers[2]}$"))
    settled(page)
    page.get_by_role("link", name=f"← {numbers[1]}").wait_for()
    page.keyboard.press("k")
    page.wait_for_url(re.compile(f"features/{numbers[1]}$"))
    page.get_by_role("link", name="back to the list").click()
    page.wait_for_url(re.compile("kind=current"))


def test_a_sentence_is_searched_by_what_was_counted(page):
    page.goto(f"/#/{DICTIONARY}/search?q=the cat sat on a mat&kind=sentence")
    page.get_by_role("status").filter(has_text="the model was not run").wait_for()
    page.get_by_text(re.compile(r"fires on \d+% of")).first.wait_for()


def test_feature_page_shows_evidence(page):
    page.goto(f"/#/{DICTIONARY}/features?sort=density&order=desc")
    page.locator("main tbody tr a").first.click()
    page.get_by_role("heading", name="Strongest contexts").wait_for()
    first = page.locator(".contexts li").first
    assert first.locator(".peak").count() == 1 and first.locator(".token").count() >= 1
    for heading in ("Tokens it makes likelier", "Explanations", "Nearest features", "Activations", "Documents"):
        assert page.get_by_role("heading", name=heading, exact=True).is_visible()
    for name in ("Copy link", "Copy curl", "Copy Python"):
        assert page.get_by_role("button", name=name).is_visible()


def test_tokens_are_reached_by_keyboard_and_say_their_activation(page, server):
    contexts = httpx.get(f"{server}/api/v1/dictionaries/{DICTIONARY}/features/3/contexts").json()
    row = next(n for n, item in enumerate(contexts["items"]) if len(item["places"]) > 1)
    item = contexts["items"][row]
    page.goto(f"/#/{DICTIONARY}/features/3")
    line = page.locator(".contexts li").nth(row)
    line.locator(".token[tabindex='0']").focus()
    assert line.locator(".token[tabindex='0']").count() == 1
    step = "ArrowRight" if item["peak"] != item["places"][-1] else "ArrowLeft"
    page.keyboard.press(step)
    place = item["places"][item["places"].index(item["peak"]) + (1 if step == "ArrowRight" else -1)]
    assert page.evaluate("document.activeElement.dataset.place") == str(place)
    detail = line.get_by_role("status")
    assert f"token {item['place'] + place - item['peak']:,} of its text" in detail.inner_text()
    page.keyboard.press("Escape")
    assert line.get_by_role("status").count() == 0
    line.locator(".peak").click()
    assert (
        "100.0 % of the feature's largest" in detail.inner_text() or "% of the feature's largest" in detail.inner_text()
    )


def test_activation_is_not_shown_by_colour_alone(page):
    page.goto(f"/#/{DICTIONARY}/features/3")
    page.locator(".peak").first.wait_for()
    shadows = page.locator(".contexts .token").evaluate_all("all => all.map(e => getComputedStyle(e).boxShadow)")
    assert all(re.search(r"inset", shadow) and re.search(r"-[123]px", shadow) for shadow in shadows)


def test_places_are_kept(page):
    """Back leads to where the page was left; a new page begins at its top, with the focus on its heading."""
    page.goto(f"/#/{DICTIONARY}/features")
    page.locator("main tbody tr").nth(30).wait_for()
    page.evaluate("window.scrollTo(0, 900)")
    page.wait_for_timeout(100)
    page.locator("main tbody tr a").nth(40).click()
    page.get_by_role("heading", name="Strongest contexts").wait_for()
    page.wait_for_function("() => window.scrollY === 0 && document.activeElement.tagName === 'H1'")
    page.go_back()
    page.locator("main tbody tr").nth(30).wait_for()
    page.wait_for_function("() => window.scrollY > 700")


def test_the_palette_and_the_help_work_by_keyboard(page):
    page.goto(f"/#/{DICTIONARY}")
    page.get_by_role("heading", name="tiny / first").wait_for()
    page.keyboard.press("Control+k")
    page.get_by_role("combobox", name="Go to").wait_for()
    page.keyboard.type("7")
    page.get_by_role("option").filter(has_text=re.compile("^7 ")).wait_for()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("features/7$"))
    settled(page)
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keys and words").wait_for()
    page.get_by_label("single keys are shortcuts").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.wait_for_timeout(200)
    assert page.url.endswith("features/7") and page.locator("kbd:visible").count() == 0
    page.keyboard.press("Control+k")
    page.keyboard.type("concepts")
    page.get_by_role("option", name="concepts").wait_for()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("concepts$"))


def test_two_features_stand_side_by_side(page):
    page.goto(f"/#/{DICTIONARY}/features/3")
    page.get_by_role("link", name="Compare with its nearest").click()
    page.get_by_role("heading", name="Two features").wait_for()
    page.get_by_text(re.compile(r"Cosine of decoder rows: 0\.\d\d")).wait_for()
    assert page.get_by_role("heading", name="Strongest contexts").count() == 2
    page.get_by_label("right").fill("9")
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url(re.compile("compare/3/9$"))


def test_pinned_features_are_a_list_with_an_address(page):
    for number in (9, 3):
        page.goto(f"/#/{DICTIONARY}/features/{number}")
        page.get_by_role("heading", name="Strongest contexts").wait_for()
        page.keyboard.press("b")
        page.get_by_role("button", name="Pinned").wait_for()
    page.get_by_role("link", name="2 pinned").click()
    page.wait_for_url(re.compile("ids=9,3"))
    page.wait_for_function("() => document.querySelectorAll('main tbody tr').length === 2")
    assert sorted(shown_features(page)) == [3, 9]
    page.get_by_role("button", name="Show all features").click()
    page.wait_for_function("() => document.querySelectorAll('main tbody tr').length === 50")


def test_an_embedded_feature_has_no_frame_of_its_own(page):
    page.goto(f"/#/{DICTIONARY}/features/3?embed=true")
    page.get_by_role("heading", name="Strongest contexts").wait_for()
    assert page.locator("header").count() == 0 and page.get_by_role("navigation").count() == 0
    assert page.get_by_role("link", name="Open in saedex").get_attribute("href").endswith("features/3")


def test_a_document_leads_to_its_features(page):
    page.goto(f"/#/{DICTIONARY}/features/3")
    page.locator(".source a").first.click()
    page.wait_for_url(re.compile(r"documents/\d+"))
    page.get_by_role("columnheader", name="mean activation").wait_for()
    page.locator("main tbody a").first.click()
    page.get_by_role("heading", name="Strongest contexts").wait_for()


def test_a_feature_that_is_not_there_offers_no_neighbours(page):
    page.goto(f"/#/{DICTIONARY}/features/99999")
    page.get_by_role("alert").filter(has_text="features 0..63").wait_for()
    page.get_by_role("navigation", name="Features").filter(has_not_text="→").wait_for()  # once their number is known


def test_peaks_stand_in_one_column(page):
    if page.viewport_size["width"] < 640:
        pytest.skip("contexts wrap on a phone")
    page.goto(f"/#/{DICTIONARY}/features?sort=density&order=desc")
    page.locator("main tbody tr a").first.click()
    page.get_by_role("heading", name="Strongest contexts").wait_for()
    lefts = [
        box["x"] for box in (e.bounding_box() for e in page.locator(".contexts section").first.locator(".peak").all())
    ]
    assert len(lefts) > 3 and max(lefts) - min(lefts) < 2


def test_theme_can_be_switched_and_is_remembered(page):
    page.goto("/")
    before = page.evaluate("document.documentElement.dataset.theme")
    page.get_by_role("button", name=f"Use {'light' if before == 'dark' else 'dark'} theme").click()
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
TEXT_KEYS = {
    "label",
    "text",
    "name",
    "why",
    "before",
    "peak",
    "after",
    "problem",
    "run",
    "model",
    "hook",
    "architecture",
    "explainer",
}


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

    def planted(route):
        answer = route.fetch()
        is_json = answer.headers["content-type"] == "application/json"
        route.fulfill(json=hostile(answer.json())) if is_json else route.fulfill(response=answer)

    page.route("**/api/v1/**", planted)
    for address in (
        *(state for state in STATES if "99999" not in state and "nonsense" not in state and "zzzz" not in state),
    ):
        page.goto(f"/#{address}")
        settled(page)
        if "/map" not in address:  # which writes few names, as far as there is room
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
    page.locator("main tbody tr a").first.click()
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


def test_a_context_widens_and_leads_into_its_document(page):
    page.goto(f"/#/{DICTIONARY}/features/3")
    page.get_by_role("button", name="More of the text").first.click()
    page.get_by_text("activations are stored for the line above alone").wait_for()
    assert page.locator(".wider mark").count() == 1
    page.locator(".source a").first.click()
    page.wait_for_url(re.compile(r"documents/\d+\?at=\d+"))
    page.get_by_role("heading", name="Text").wait_for()
    page.locator(".text mark").wait_for()


def test_windows_that_were_judged_are_shown_with_the_wrong_ones_first(page, server):
    base = f"{server}/api/v1/dictionaries/{DICTIONARY}/features"
    wrong = {}
    for feature in range(64):
        for item in httpx.get(f"{base}/{feature}/judged").json()["items"]:
            wrong[feature] = sum(w["said"] is False and w["fires"] for w in item["windows"])
    feature = max(wrong, key=wrong.__getitem__)
    assert wrong[feature] > 0
    page.goto(f"/#/{DICTIONARY}/features/{feature}")
    page.get_by_text("Which windows it got wrong").click()
    page.get_by_text(f"{wrong[feature]} missed: it fires, the text says no").wait_for()
    assert page.locator("details details[open] mark").first.is_visible()


def test_the_map_is_moved_and_opened_by_keyboard(page):
    page.goto(f"/#/{DICTIONARY}/map")
    canvas = page.get_by_role("application")
    canvas.focus()
    for key in ("+", "+", "ArrowLeft", "ArrowUp", "-"):
        page.keyboard.press(key)
    page.wait_for_url(re.compile("view="))
    page.keyboard.press("0")
    page.wait_for_url(lambda url: "view=" not in url)
    link = page.locator(".told a")
    for key in ("+", *("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown") * 3):
        page.keyboard.press(key)  # until something is near the middle
        if link.count():
            break
    number = link.inner_text()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(f"features/{number}$"))


def test_a_rectangle_of_the_map_is_a_table(page):
    page.goto(f"/#/{DICTIONARY}/map")
    settled(page)
    box = page.get_by_role("application").bounding_box()
    page.keyboard.down("Shift")
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 2, steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")
    page.wait_for_url(re.compile("features\\?area="))
    page.get_by_text("A part of the map.").wait_for()
    n = int(page.get_by_role("status").first.inner_text().split()[0])
    assert 0 < n < 64
    page.get_by_role("button", name="Show all features").click()
    page.wait_for_url(lambda url: "area" not in url)


def test_texts_are_held_against_others_and_vectors_are_searched(page, server):
    page.goto(f"/#/{DICTIONARY}/search?kind=sentence")
    page.get_by_label("fires on these texts").fill("the cat\nthe dog")
    page.get_by_label("and less on these").fill("a house")
    page.wait_for_url(re.compile("against="))
    settled(page)
    page.goto(f"/#/{DICTIONARY}/search?q=[1,2]")
    page.get_by_role("alert").filter(has_text="the rows of this dictionary have 32").wait_for()


def test_imported_pages_say_what_is_not_known_and_ask_for_nothing_that_is_not_there(browser, finished, tmp_path):
    bucket = tmp_path / "bucket"
    run_here("export", finished / "dictionaries" / "first", "--to", "neuronpedia", bucket)
    source = next(bucket.glob("*/*/features")).parent
    done = run_here(
        "import", source, "--from", "neuronpedia", tmp_path / "runs" / "imported" / "dictionaries" / "theirs"
    )
    assert done.returncode == 0, done.stderr
    with serving(tmp_path / "runs") as address:
        context = browser.new_context(viewport={"width": 390, "height": 900}, base_url=address)
        page, refused = context.new_page(), []
        page.on("pageerror", lambda e: refused.append(str(e)))
        page.on("response", lambda r: refused.append(r.url) if r.status >= 400 else None)
        for part, words in (
            ("", "Nothing is known of how well these labels hold"),
            ("/features/3", "Strongest contexts"),
        ):
            page.goto("about:blank")
            page.goto(f"/#/imported.theirs{part}")
            settled(page)
            page.locator("main").get_by_text(
                words
            ).first.wait_for()  # what is chosen to be shown comes by a second request
            assert violations(page) == []
            assert "of strong firings" not in page.inner_text("main")
        context.close()
    assert not refused
