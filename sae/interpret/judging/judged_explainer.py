"""What an explainer with a judge is: from a feature's evidence to a prompt, and from the answer to a text."""

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
    """Asks a judge for a label, with windows of the explain documents only."""

    name: ClassVar[str]
    order: ClassVar[int] = 20
    by_default: ClassVar[bool] = False  # whether it runs with a judge unless explainers are named

    @abstractmethod
    def prompt(self, evidence: Evidence, feature: int) -> Prompt | None:
        """The prompt, or None if this kind of text does not apply to the feature."""

    def text(self, value: Any) -> str | None:
        """The explanation in an answer of the form `ANSWER`, as "label: sentence"; None if there is none."""
        if not isinstance(value, dict) or not isinstance(value.get("label"), str):
            return None
        label = plain(value["label"], LONGEST_LABEL)
        sentence = plain(value.get("sentence", ""), LONGEST_SENTENCE)
        if not label:
            return None
        return ("says " if value.get("kind") == "output" else "") + label + (f": {sentence}" if sentence else "")
