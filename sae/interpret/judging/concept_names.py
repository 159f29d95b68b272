"""Names of concepts from a judge who reads the labels of their members."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from feature_store.records import Concept
from sae.interpret.judging.judge import Judge, Prompt
from sae.interpret.judging.prompts import DATA, as_data, plain, schema

MEMBERS, LONGEST_NAME = 40, 60
SYSTEM = (
    "You are given descriptions of features of a language model that belong together. Name what they have in common. "
    'Answer: {"name": at most five words}. ' + DATA
)
ANSWER = schema(name={"type": "string", "maxLength": LONGEST_NAME})


def named_by(judge: Judge, concepts: list[Concept], labels: dict[int, str], own: set[int]) -> list[Concept]:
    """The concepts, each named by the judge with its own key words in brackets; without an answer it keeps those.

    Only concepts most of whose members have a label of the judge's (`own`) are named: that is a judge whose texts held
    up. Coverage goes on to mean the key words.
    """
    members = [[labels[f] for f in c.features if f in labels] for c in concepts]
    held_up = [2 * len(own.intersection(c.features)) > len(c.features) for c in concepts]
    asked = [(i, _spread(found)) for i, found in enumerate(members) if found and held_up[i]]
    answers = judge.ask([Prompt(SYSTEM, as_data(descriptions=found), ANSWER) for _, found in asked])
    named = list(concepts)
    for (i, _), answer in zip(asked, answers, strict=True):
        name = _name(answer.value)
        if name:
            named[i] = replace(named[i], name=f"{name} ({named[i].name})")
    return named


def _spread(texts: list[str]) -> list[str]:
    """At most `MEMBERS` of the texts, evenly over their order."""
    return texts[:: -(-len(texts) // MEMBERS)]


def _name(value: Any) -> str:
    found = value.get("name") if isinstance(value, dict) else None
    return plain(found, LONGEST_NAME) if isinstance(found, str) else ""
