"""Text from anywhere, made fit to print: nothing in it commands a terminal or hides from the eye."""

from __future__ import annotations


def visible(text: str) -> str:
    r"""The text with every character that does not print, but line feed and tab, as its escape, such as `\x1b`.

    These are controls (C0, C1), line and paragraph separators, and all format characters: those that turn the direction
    of writing, joiners of no width, tags.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
