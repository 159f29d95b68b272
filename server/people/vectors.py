"""Vectors that people keep, in Neuronpedia's shapes: a vector has its owner as its source, and a number."""

from __future__ import annotations

import json
import math
from typing import Any

from feature_store.people.database import People
from feature_store.people.entry import NOWHERE, Kind, Record
from server.errors import ApiError

MOST_ACTIVATIONS = 500  # of one vector
MOST_TOKENS = 4096  # of one text


def vector_record(people: People, source: Any, index: Any) -> Record:
    """The entry of a vector; 404 if there is none."""
    record = _record(people, "vector", str(source), str(index))
    if record is None:
        raise ApiError(404, "no such vector; its source is its owner's name, its index a number")
    return record


def activations_of(people: People, record: Record) -> list[dict[str, Any]]:
    """The texts that were uploaded for a vector, each with its tokens and their values."""
    uploaded = _record(people, "activations", record.person, record.entry.subject)
    return json.loads(uploaded.entry.value or "[]") if uploaded else []


def _record(people: People, kind: Kind, person: str, subject: str) -> Record | None:
    said = people.said(NOWHERE.weights, kind=kind, person=person)
    return next((record for record in said if record.entry.subject == subject), None)


def vector_body(record: Record) -> dict[str, Any]:
    """A vector as its routes tell it."""
    return json.loads(record.entry.value or "{}") | {"layer": record.person, "index": record.entry.subject}


def neuron_of_vector(people: People, record: Record) -> dict[str, Any]:
    """A vector as the route of features tells it: it has no statistics, and the activations that were uploaded."""
    vector = vector_body(record)
    place = {
        "modelId": vector["modelId"],
        "layer": vector["layer"],
        "source": vector["layer"],
        "index": vector["index"],
    }
    activations = [
        place | {"tokens": a["tokens"], "values": a["values"], "maxValue": max(a["values"]), "binMin": None,
                 "binMax": None, "binContains": None}
        for a in activations_of(people, record)
    ]  # fmt: skip
    return vector | place | {
        "hasVector": True,
        "maxActApprox": max((a["maxValue"] for a in activations), default=None),
        "frac_nonzero": None,
        "explanations": [],
        "activations": activations,
    }  # fmt: skip


def checked_activations(value: Any) -> list[dict[str, Any]]:
    """Uploaded texts as they are kept; 422 with what is wanted."""
    wanted = (
        f"activations: 1 to {MOST_ACTIVATIONS} objects with tokens and values, of up to {MOST_TOKENS:,} each and of one "
        "length, are wanted; values are finite numbers"
    )
    if not isinstance(value, list) or not 0 < len(value) <= MOST_ACTIVATIONS or not all(map(_is_text, value)):
        raise ApiError(422, wanted)
    return [{"tokens": item["tokens"], "values": item["values"]} for item in value]


def _is_text(item: Any) -> bool:
    match item:
        case {"tokens": list(tokens), "values": list(values)}:
            return (
                0 < len(tokens) == len(values) <= MOST_TOKENS
                and all(isinstance(token, str) for token in tokens)
                and all(type(number) in (int, float) and math.isfinite(number) for number in values)
            )
    return False
