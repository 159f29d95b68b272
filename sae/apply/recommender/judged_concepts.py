"""RecSAE's concepts by a language model: it describes what a latent recommends, and predicts its level in samples held out.

The model sees of every sample the titles of the last nine items of the history and of the recommended one. Of the samples that
choose the description it is told the level, 0 to 10; of tested ones, and of as many in which the latent does not fire, it predicts
it. Above 5 means active (Wang et al. 2024, arXiv 2411.06112). The null is another latent's description on the same samples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sae.apply.recommender.item_concepts import LEVELS, Firings, ItemConcept
from sae.apply.recommender.recommendations import Histories
from sae.interpret.judging.judge import Answer, Judge, Prompt
from sae.interpret.judging.prompts import DATA, as_data, plain, schema

HISTORY, SHOWN, PER_PROMPT = (
    9,
    10,
    5,
)  # items of a history; samples that a description is made from; samples of a prompt
ACTIVE = 5  # a predicted level above it means that the latent fires
LONGEST = 120
DESCRIBE = (
    "A neuron of a recommender fires on some users. You are given samples: the titles of the last items of a user's history, the title "
    "of the item that is recommended next, and how strongly the neuron fires, 1 to 10. Say in a few words what it finds. Answer: "
    '{"description": a few words}. ' + DATA
)
PREDICT = (
    "You are given a description of when a neuron of a recommender fires, and samples: the titles of the last items of a user's history "
    "and of the item that is recommended next. Predict for each sample, in order, how strongly the neuron fires, from 0 (not at all) to "
    '10. Answer: {"levels": [one whole number for each sample]}. ' + DATA
)


class JudgedConcept(NamedTuple):
    """A latent's description, its confidence, and that of another latent's description on the same samples.

    Both are NaN where the judge's answers could not be read.
    """

    latent: int
    description: str
    confidence: float
    null: float
    recall: float
    silence: float


def judged_concepts(
    judge: Judge,
    labelled: list[ItemConcept],
    firings: Firings,
    samples: list[list[int]],
    *,
    histories: Histories,
    seed: int,
) -> list[JudgedConcept]:
    """Describes latents and tests the descriptions; latents whose description cannot be read are left out."""
    titles = [item.title for item in histories.items]
    shown = _Samples(firings, samples, titles)
    edges = np.quantile(firings.act, np.linspace(0, 1, LEVELS + 1)[1:-1])
    answers = judge.ask([shown.describe(concept, edges) for concept in labelled])
    texts = [_description(answer) for answer in answers]
    known = [(concept, text) for concept, text in zip(labelled, texts, strict=True) if text]
    if not known:
        return []

    shift = 1 + int(np.random.default_rng(seed).integers(max(len(known) - 1, 1)))
    asked: list[Prompt] = []
    for number, (concept, text) in enumerate(known):
        other = known[(number + shift) % len(known)][1]
        for description in (text, other):
            asked += shown.predict(concept, description)
    levels = [_levels(answer) for answer in judge.ask(asked)]

    out, place = [], 0
    for concept, text in known:
        n = len(shown.predict(concept, text))
        true, other = (_counted(levels[place + side * n : place + (side + 1) * n], concept) for side in (0, 1))
        out.append(
            JudgedConcept(
                concept.latent, text, true.confidence, other.confidence, recall=true.recall, silence=true.silence
            )
        )
        place += 2 * n
    return out


class _Samples:
    """Samples as a judge reads them."""

    def __init__(self, firings: Firings, samples: list[list[int]], titles: list[str]):
        self.firings, self.samples, self.titles = firings, samples, titles

    def describe(self, concept: ItemConcept, edges: Float[np.ndarray, " edges"]) -> Prompt:
        """The prompt that asks for a description, from the samples that chose the latent's concept."""
        fires = self.firings.latent == concept.latent
        act_of = dict(zip(self.firings.sample[fires].tolist(), self.firings.act[fires].tolist(), strict=True))
        chosen = sorted(concept.chosen_on.tolist(), key=lambda sample: -act_of[sample])[:SHOWN]
        rows = [{**self._sample(s), "level": 1 + int(np.searchsorted(edges, act_of[s], "right"))} for s in chosen]
        return Prompt(DESCRIBE, as_data(samples=rows), schema(description={"type": "string", "maxLength": LONGEST}))

    def predict(self, concept: ItemConcept, description: str) -> list[Prompt]:
        """The prompts that ask for levels, some samples at a time: those tested and those without the latent, by turns."""
        order = np.stack([concept.tested_on, concept.silent[: len(concept.tested_on)]], axis=1).ravel()
        numbers = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 10}}
        prompts = []
        for start in range(0, len(order), PER_PROMPT):
            part: Int[np.ndarray, " part"] = order[start : start + PER_PROMPT]
            data = as_data(description=description, samples=[self._sample(s) for s in part.tolist()])
            size = {"minItems": len(part), "maxItems": len(part)}
            prompts.append(Prompt(PREDICT, data, schema(levels={**numbers, **size})))
        return prompts

    def _sample(self, number: int) -> dict[str, Any]:
        history = [self.titles[item] for item in self.samples[number][-HISTORY:]]
        return {"history": history, "recommended": self.titles[int(self.firings.recommended[number])]}


def _description(answer: Answer) -> str:
    value = answer.value.get("description") if isinstance(answer.value, dict) else None
    return plain(value, LONGEST) if isinstance(value, str) else ""


def _levels(answer: Answer) -> list[int]:
    """Predicted levels; none where the answer cannot be read."""
    value = answer.value.get("levels") if isinstance(answer.value, dict) else None
    if not isinstance(value, list) or not all(isinstance(x, int) and not isinstance(x, bool) for x in value):
        return []
    return value


class _Counted(NamedTuple):
    confidence: float
    recall: float
    silence: float


def _counted(levels: list[list[int]], concept: ItemConcept) -> _Counted:
    """The share of samples that are told rightly; tested and silent ones come by turns. An answer that lacks levels is no figure."""
    said = np.array([level > ACTIVE for part in levels for level in part])
    if len(said) != 2 * min(len(concept.tested_on), len(concept.silent)):
        return _Counted(float("nan"), float("nan"), float("nan"))
    recall, silence = float(said[0::2].mean()), float(1 - said[1::2].mean())
    return _Counted((recall + silence) / 2, recall, silence)
