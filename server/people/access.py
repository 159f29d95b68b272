"""Who asks: the file of people's entries, if the server has one, and the person whose key comes with a request."""

from __future__ import annotations

from fastapi import Request

from feature_store.people.database import People, Person
from server.errors import ApiError
from server.middleware.key_holders import key_of

OFF = "people's input is off here; start the server with --people FILE"


def people_of(request: Request) -> People:
    people = people_if_on(request)
    if people is None:
        raise ApiError(404, OFF)
    return people


def people_if_on(request: Request) -> People | None:
    """The file of what people say; None if the server has none."""
    return request.app.state.people


def person_of(request: Request) -> Person | None:
    """The person whose key comes with the request; None without one. 401 if nobody has it."""
    key, people = key_of(request.headers), people_if_on(request)
    if not key or people is None:
        return None
    person = people.person_of(key)
    if person is None:
        raise ApiError(401, "nobody has this key; the owner of the server gives one with `sae people FILE add NAME`")
    return person


def known_person(request: Request) -> Person:
    person = person_of(request)
    if person is None:
        raise ApiError(401, "this needs a key, in the header authorization: Bearer KEY")
    return person
