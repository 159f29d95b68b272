"""Questions that a model answers itself, rightly or wrongly: claims whose truth is known, in the model's own words.

A wrong answer that is given all the same is a hallucination; probes on activations may tell it from a right one (Duan et al. 2025,
TruthPrInt, arXiv 2503.10602), and an intervention may make it rarer.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from sae.apply.edit import EditPlan, edited
from sae.apply.probes.statements import CITIES
from sae.apply.text_codes import TextReader
from sae.errors import DataError
from sae.text.brought import ClassedTexts, lines
from sae.text.mixture import well_formed

FORMS = ("The city of {city} is in", "{city} is a city in", "The country in which you find the city of {city} is")
PER_PASS = 32  # prompts
FEWEST = 2  # different answers


class Question(NamedTuple):
    """A prompt that the right answer continues; questions of one group are alike."""

    prompt: str
    right: str
    group: str


class Answers(NamedTuple):
    """What a model says after some prompts: M, the logit of the right answer less that of the likeliest wrong one, and the number
    of the likeliest answer among `choices`.
    """

    margin: Float[np.ndarray, " questions"]
    said: Int[np.ndarray, " questions"]

    @property
    def is_right(self) -> Bool[np.ndarray, " questions"]:
        return self.margin > 0


def city_questions() -> list[Question]:
    """In which country every city is, in three forms."""
    return [Question(form.format(city=city), country, city) for city, country in CITIES.items() for form in FORMS]


def read_questions(path: Path) -> list[Question]:
    """The lines of a file, objects with "prompt", "answer" and perhaps "group"; raises `DataError` naming the line."""
    out = []
    for number, line in enumerate(lines(path), 1):
        try:
            row = json.loads(line)
            prompt, right, group = row["prompt"], row["answer"], row.get("group", number)
            if not all(isinstance(part, str) and part.strip() for part in (prompt, right)):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f'{path}: line {number} is not an object with a "prompt" and an "answer".') from None
        out.append(Question(well_formed(prompt), well_formed(right).strip(), str(group)))
    return out


class Quiz:
    """Questions whose answers a model can tell by their first tokens, which all choices have for themselves.

    Questions whose right answer begins like another one's are left out. Raises `DataError` if hardly any answer is left.
    """

    def __init__(self, reader: TextReader, questions: Sequence[Question]):
        self.reader = reader
        every = sorted({question.right for question in questions})
        firsts = [reader.lm.tokenizer(f" {answer}", add_special_tokens=False).input_ids[0] for answer in every]
        times = Counter(firsts)
        choices = {answer: first for answer, first in zip(every, firsts, strict=True) if times[first] == 1}
        if len(choices) < FEWEST:
            raise DataError(
                f"{len(choices)} different answers can be told by their first token; wanted are {FEWEST} or more."
            )
        self.choices = list(choices)
        self.tokens = torch.tensor(list(choices.values()), device=reader.lm.device)
        self.questions = [question for question in questions if question.right in choices]
        self._right = np.array([self.choices.index(question.right) for question in self.questions])

    @torch.no_grad()
    def answers(self, plan: EditPlan, numbers: Int[np.ndarray, " some"] | None = None) -> Answers:
        """What the model answers under edits, to all questions or to some."""
        numbers = np.arange(len(self.questions)) if numbers is None else numbers
        scores = np.zeros((len(numbers), len(self.choices)))
        lm, length = self.reader.lm, self.reader.ctx_len
        rows = [lm.token_ids(self.questions[number].prompt, length) for number in numbers]
        with edited(lm, self.reader.sae, plan):
            for start in range(0, len(rows), PER_PASS):
                part = rows[start : start + PER_PASS]
                ids = np.zeros((len(part), max(map(len, part))), np.int64)
                for row, tokens in zip(ids, part, strict=True):
                    row[: len(tokens)] = tokens
                logits = lm.model(input_ids=torch.from_numpy(ids).to(lm.device), use_cache=False).logits
                last = torch.tensor([len(tokens) - 1 for tokens in part], device=lm.device)
                chosen = logits[torch.arange(len(part), device=lm.device), last][:, self.tokens]
                scores[start : start + len(part)] = chosen.double().cpu().numpy()
        right = scores[np.arange(len(numbers)), self._right[numbers]]
        others = scores.copy()
        others[np.arange(len(numbers)), self._right[numbers]] = -np.inf
        return Answers(right - others.max(1), scores.argmax(1))

    def claims(self, answers: Answers) -> ClassedTexts:
        """Every prompt with the model's answer as a statement, "right" or "wrong"."""
        texts = [f"{q.prompt} {self.choices[said]}." for q, said in zip(self.questions, answers.said, strict=True)]
        labels = ["right" if is_right else "wrong" for is_right in answers.is_right]
        return ClassedTexts(texts, labels, [question.group for question in self.questions])
