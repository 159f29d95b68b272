"""Articles of a wiki's dump: prose without markup, redirects and pages about the wiki left out."""

from __future__ import annotations

import bz2
import io

import pytest

from sae.text.wiki import articles

PAGES = {
    "Cat": "{{Infobox|a=b}}\n'''Cats''' are [[animal|small animals]].<ref>A book</ref>\n[[File:cat.png|thumb|A cat]]\n"
    "{| class=x\n| cell\n|}\n* a list\n\n== Food ==\nThey eat [[fish]].\n\n== See also ==\n* [[Dog]]\n[[de:Katze]]",
    "Kitty": "#REDIRECT [[Cat]]",
    "Category:Animals": "A list of animals.",
}
DUMP = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">' + "".join(
    f"<page><title>{title}</title><revision><text>{text.replace('<', '&lt;')}</text></revision></page>"
    for title, text in PAGES.items()
)


@pytest.mark.parametrize("packed", [False, True])
def test_articles_are_prose(packed):
    data = (DUMP + "</mediawiki>").encode()
    found = list(articles(io.BytesIO(bz2.compress(data) if packed else data)))
    assert [article.title for article in found] == ["Cat"]
    text = found[0].text
    assert text.startswith("Cats are small animals.") and "They eat fish." in text
    for gone in ("Infobox", "book", "thumb", "cell", "See also", "Dog", "Katze", "[[", "'''"):
        assert gone not in text


def test_a_dump_that_expands_entities_is_refused():
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb">]><mediawiki><title>T</title><text>&b;</text></mediawiki>'
    with pytest.raises(ValueError):
        list(articles(io.BytesIO(bomb.encode())))
