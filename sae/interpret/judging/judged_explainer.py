"""What an explainer is that asks a judge: evidence of a feature in, a prompt out; an answer in, a text out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from sae.interpret.evidence import Evidence
from sae.interpret.judging.judge import Prompt
from sae.interpret.judging.prompts import LONGEST_LABEL, LONGEST_SENTENCE, plain, schema

SHORT = {"type": "string", "maxLength": LONGEST_LABEL}
SENTENCE = {"type": "string", "maxLength": LONGEST_SENTENCE}
ANSWER = schema(kind={"type": "string", "enum": ["input", "output"]}, label=SHORT, sentence=SENTENCE)


class JudgedExplainer(ABC):
    """Asks a judge for a label. Explanations are made from the explain documents only."""

    name: ClassVar[str]
    order: ClassVar[int] = 20
    by_default: ClassVar[bool] = False  # whether it runs with a judge unless explainers are named

    @abstractmethod
    def prompt(self, evidence: Evidence, feature: int) -> Prompt | None:
        """What to ask, or None where this kind of text does not apply."""

    def text(self, value: Any) -> str | None:
        """The explanation in an answer of `ANSWER`'s form, "label: sentence"; None where there is none."""
        if not isinstance(value, dict) or not isinstance(value.get("label"), str):
            return None
        label = plain(value["label"], LONGEST_LABEL)
        sentence = plain(value.get("sentence", ""), LONGEST_SENTENCE)
        if not label:
            return None
        return ("says " if value.get("kind") == "output" else "") + label + (f": {sentence}" if sentence else "")
