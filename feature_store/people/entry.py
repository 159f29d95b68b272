"""An entry: one thing that one person says of one feature, and what may be said."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

Kind = Literal["label", "note", "tag", "list", "vote", "rating", "description", "vector", "activations"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MOST_LETTERS = {
    "label": 200,
    "note": 4000,
    "description": 4000,
    "vector": 4_000_000,
    "activations": 16_000_000,
    "name": 64,
    "subject": 1000,
}
NAME = re.compile(r"[^\W_][\w .:+-]*")
ABOUT_NO_FEATURE: tuple[Kind, ...] = ("description", "vector", "activations")
YES = "yes"
RATINGS = ("1", "2", "3", "4", "5")
VOTES = ("up", "down")


class EntryError(ValueError):
    """Something that cannot be said, with what can."""


@dataclass(frozen=True)
class Entry:
    """What is said. `subject` tells entries of one kind apart: the name of a tag or list, the text that is voted on.

    A label, a note and a rating have no subject: a person has one of each per feature. The description of a list, a
    vector and the texts of a vector are about no feature. `value` None takes it back.
    """

    kind: Kind
    subject: str
    value: str | None


class Place(NamedTuple):
    """What it is said of: a feature of the dictionary with these weights. The id is for people; weights tell."""

    dictionary: str
    weights: str
    feature: int


NOWHERE = Place("-", "-", 0)  # of what is not about a feature: the description of a list, a vector and its texts


@dataclass(frozen=True)
class Record:
    """An entry with its number, time, person and place; `undone_at` if it was taken back by undoing."""

    id: int
    at: str
    person: str
    entry: Entry
    place: Place
    undone_at: str | None = None
    undone_by: str | None = None
    imported_by: str | None = None

    def as_json(self) -> dict[str, Any]:
        """One flat object, as exports have it."""
        place, said = self.place._asdict(), vars(self.entry)
        undone = {"undone_at": self.undone_at, "undone_by": self.undone_by, "imported_by": self.imported_by}
        return {"id": self.id, "at": self.at, "person": self.person, **place, **said, **undone}


def checked(kind: Any, subject: Any, value: Any) -> Entry:
    """The entry; raises `EntryError` with what is allowed."""
    if kind not in KINDS:
        raise EntryError(f"kind: one of {', '.join(KINDS)} is wanted")
    if not isinstance(subject, str) or not (value is None or isinstance(value, str)):
        raise EntryError("subject: a text is wanted; value: a text, or null to take it back")
    subject, value = subject.strip(), value.strip() if value else None
    _CHECKS[kind](kind, subject, value or None)
    return Entry(kind, subject, value or None)


def _text(kind: Kind, subject: str, value: str | None) -> None:
    _no_subject(kind, subject)
    most = MOST_LETTERS[kind]
    if value is not None and (len(value) > most or (kind == "label" and "\n" in value)):
        raise EntryError(f"value: a {kind} has up to {most} letters{', on one line' if kind == 'label' else ''}")


def _name(kind: Kind, subject: str, value: str | None) -> None:
    _has_name(kind, subject)
    if value not in (None, YES):
        raise EntryError(f'value: "{YES}" is wanted, or null')


def _named_text(kind: Kind, subject: str, value: str | None) -> None:
    _has_name(kind, subject)
    if value is not None and len(value) > MOST_LETTERS[kind]:
        raise EntryError(f"value: a {kind} has up to {MOST_LETTERS[kind]:,} letters")


def _has_name(kind: Kind, subject: str) -> None:
    if len(subject) > MOST_LETTERS["name"] or not NAME.fullmatch(subject):
        raise EntryError(
            f"subject: the name of a {kind} has up to {MOST_LETTERS['name']} letters, digits, spaces or .:+-_"
        )


def _vote(kind: Kind, subject: str, value: str | None) -> None:
    if not 0 < len(subject) <= MOST_LETTERS["subject"]:
        raise EntryError("subject: the text that is voted on is wanted")
    if value not in (None, *VOTES):
        raise EntryError("value: up or down is wanted, or null")


def _rating(kind: Kind, subject: str, value: str | None) -> None:
    _no_subject(kind, subject)
    if value not in (None, *RATINGS):
        raise EntryError("value: 1 to 5 is wanted, or null")


def _no_subject(kind: Kind, subject: str) -> None:
    if subject:
        raise EntryError(f"subject: a {kind} has none; leave it empty")


_CHECKS: dict[Kind, Callable[[Kind, str, str | None], None]] = {
    "label": _text,
    "note": _text,
    "tag": _name,
    "list": _name,
    "vote": _vote,
    "rating": _rating,
    "description": _named_text,
    "vector": _named_text,
    "activations": _named_text,
}
