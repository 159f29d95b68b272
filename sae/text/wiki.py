"""Articles of a MediaWiki dump as plain text."""

from __future__ import annotations

import bz2
import re
from collections.abc import Iterator
from contextlib import nullcontext
from typing import IO, NamedTuple

import mwparserfromhell
from defusedxml.ElementTree import iterparse

LINKED_ONLY = re.compile(r"^(file|image|category|media|wikipedia|template|[a-z]{2,3}(-[a-z]+)?):", re.IGNORECASE)
LEFT_OVER = re.compile(r"^[ \t]*([|!{}*#:;=]|thumb\||left\||right\|).*$", re.MULTILINE)
APPENDIX = re.compile(r"\n\s*(See also|References|Notes|Further reading|External links|Bibliography)\s*\n")
BLANK_LINES = re.compile(r"\n\s*\n\s*")


class Article(NamedTuple):
    """A title and the article's text, without markup."""

    title: str
    text: str


def articles(dump: IO[bytes]) -> Iterator[Article]:
    """The articles of a dump (XML, or compressed with bz2) that are no redirects, in its order."""
    begins = dump.read(3)
    dump.seek(0)
    title = ""
    with bz2.open(dump) if begins == b"BZh" else nullcontext(dump) as stream:
        for _, element in iterparse(stream):
            name = element.tag.rpartition("}")[2]
            if name == "title":
                title = element.text or ""
            elif name == "text":
                source = element.text or ""
                if not source.lstrip().lower().startswith("#redirect") and ":" not in title:
                    yield Article(title, plain(source))
                element.clear()


def plain(source: str) -> str:
    """Wikitext without templates, tables, references, pictures and what follows the last section of prose."""
    code = mwparserfromhell.parse(source)
    for link in code.filter_wikilinks():
        if LINKED_ONLY.match(str(link.title).strip()):
            _remove(code, link)
    for tag in code.filter_tags(matches=lambda tag: str(tag.tag).lower() in ("ref", "table", "gallery", "math")):
        _remove(code, tag)

    text = LEFT_OVER.sub("", code.strip_code(normalize=True, collapse=True))
    return BLANK_LINES.sub("\n\n", APPENDIX.split(text, maxsplit=1)[0]).strip()


def _remove(code: mwparserfromhell.wikicode.Wikicode, node: mwparserfromhell.nodes.Node) -> None:
    try:
        code.remove(node)
    except ValueError:  # it stood inside one that was removed before
        return
