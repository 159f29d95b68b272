"""What other sites show of a feature whose address is posted: Open Graph's tags and a picture."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import httpx
import pytest
from PIL import Image

D = "/api/v1/dictionaries/tiny.first"


class Head(HTMLParser):
    """The meta tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.refresh = {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "meta" and "property" in attributes:
            self.tags[attributes["property"]] = attributes["content"]
        if attributes.get("http-equiv") == "refresh":
            self.refresh = attributes["content"]


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server, timeout=30) as client:
        yield client


def test_the_address_of_a_feature_says_what_it_is(client):
    head = Head(client.get("/any/tiny.first/3").raise_for_status().text)
    feature = client.get(f"{D}/features/3").json()
    assert head.tags["og:title"] == f"Feature 3: {feature['label']}"
    assert f"{feature['density']:.2%}" in head.tags["og:description"]
    assert head.refresh == "0; url=../../#/tiny.first/features/3"
    picture = httpx.get(head.tags["og:image"])
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).size == (1200, 630)
    assert Head(httpx.get(head.tags["og:url"]).text).tags == head.tags


def test_a_picture_shows_its_own_feature_and_is_asked_for_once(client):
    three, four = (client.get(f"{D}/features/{n}/picture.png").raise_for_status() for n in (3, 4))
    assert three.content != four.content and len(three.content) < 150_000
    again = client.get(f"{D}/features/3/picture.png", headers={"if-none-match": three.headers["etag"]})
    assert again.status_code == 304 and not again.content
    assert client.get(f"{D}/features/64/picture.png").status_code == 404


def test_a_feature_that_never_fires_has_a_picture(client):
    rows = client.get(f"{D}/features", params={"max_density": 0, "limit": 1}).json()["items"]
    if not rows:
        pytest.skip("every feature of the tiny dictionary fires")
    assert client.get(f"{D}/features/{rows[0]['feature']}/picture.png").status_code == 200


def test_other_addresses_are_the_explorers(client):
    assert "og:title" not in client.get("/any/nothing/3").text
    beyond = Head(client.get("/any/tiny.first/64").text)
    assert beyond.tags == {} and beyond.refresh.endswith("/features/64")
    assert Head(client.get("/any/tiny.first/3?embed=true").text).refresh.endswith("?embed=true")
