"""Features that people said something of: by words, by tag, by list."""

from __future__ import annotations

from feature_store.people.database import People
from feature_store.people.entry import Entry, Record


def said_with(people: People | None, weights: str, words: list[str]) -> list[Record]:
    """Labels, notes and tags that hold all words, whatever the case."""
    lowered = [word.lower() for word in words]

    def holds(entry: Entry) -> bool:
        text = f"{entry.subject} {entry.value}".lower()
        return entry.kind in ("label", "note", "tag") and all(word in text for word in lowered)

    return [record for record in people.said(weights) if holds(record.entry)] if people else []


def features_with(people: People, weights: str, tag: str | None, in_list: str | None) -> list[int]:
    """The features that somebody gave a tag, or that are in a list, PERSON/NAME; in the order in which it was said."""
    person, _, name = (in_list or "").partition("/")
    records = people.said(weights, kind="list", person=person) if in_list else people.said(weights, kind="tag")
    wanted = name if in_list else tag
    return list(dict.fromkeys(record.place.feature for record in records if record.entry.subject == wanted))
