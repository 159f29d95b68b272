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


def named_by(judge: Judge, concepts: list[Concept], labels: dict[int, str], by_judge: set[int]) -> list[Concept]:
    """The concepts, each named by the judge, with its key words in brackets; without an answer the key words alone.

    The judge names a concept only if it wrote the labels of most members (`by_judge`), because its texts have held
    up there. Coverage still counts the key words.
    """
    members = [[labels[f] for f in c.features if f in labels] for c in concepts]
    held_up = [2 * len(by_judge.intersection(c.features)) > len(c.features) for c in concepts]
    concepts_to_name = [
        (i, _spread(member_labels)) for i, member_labels in enumerate(members) if member_labels and held_up[i]
    ]
    answers = judge.ask(
        [Prompt(SYSTEM, as_data(descriptions=member_labels), ANSWER) for _, member_labels in concepts_to_name]
    )
    renamed = list(concepts)

    for (i, _), answer in zip(concepts_to_name, answers, strict=True):
        name = _name(answer.value)
        if name:
            renamed[i] = replace(renamed[i], name=f"{name} ({renamed[i].name})")

    return renamed


def _spread(texts: list[str]) -> list[str]:
    """At most `MEMBERS` of the texts, evenly over their order."""
    return texts[:: -(-len(texts) // MEMBERS)]


def _name(value: Any) -> str:
    name = value.get("name") if isinstance(value, dict) else None
    return plain(name, LONGEST_NAME) if isinstance(name, str) else ""
