"""What a model writes under edits, judged without a language model: by a classifier of words, and by its own loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sae.apply.edit import EditPlan, Sampling, generate
from sae.apply.text_codes import TextReader
from sae.interpret.intervals import Interval, mean

PROMPTS = ("I think that", "Yesterday we", "The most important thing is", "When she came home, she")
TINY = 1e-9


class WordJudge:
    """Says of a text how likely it is of each class, from its words alone: a logistic regression on weighted words.

    It knows nothing of the model and of the dictionary, so it cannot flatter either.
    """

    def __init__(self, texts: Sequence[str], labels: Sequence[str]):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        self._model = make_pipeline(
            TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10.0, max_iter=2000, class_weight="balanced")
        )
        self._model.fit(list(texts), list(labels))

    def chances(self, texts: Sequence[str], label: str) -> Float[np.ndarray, " texts"]:
        """The probability of one class for every text."""
        column = list(self._model.classes_).index(label)
        return np.asarray(self._model.predict_proba(list(texts)))[:, column]


class Written(NamedTuple):
    """What a model wrote: the texts with their prompts, what was written alone, and the loss of each, nats per token."""

    texts: list[str]
    continuations: list[str]
    losses: Float[np.ndarray, " texts"]


class Behaviour(NamedTuple):
    """Texts that were written under edits: the chance of the wanted class, how fluent they are, and the harmonic mean of both.

    Fluency is exp(loss of plain texts - loss of this one), at most 1, by the model without edits.
    """

    concept: Interval
    fluency: Interval
    score: Interval
    example: str


def written(reader: TextReader, prompts: Sequence[str], plan: EditPlan, sampling: Sampling) -> Written:
    """What the model writes after every prompt under the edits, and how its plain self reads it."""
    texts, continuations = [], []
    for prompt in prompts:
        for continuation in generate(reader.lm, reader.sae, prompt, plan, sampling=sampling):
            texts.append(prompt + continuation)
            continuations.append(continuation)
    return Written(texts, continuations, reader.losses(texts))


def judged(steered: Written, plain: Written, judge: WordJudge, label: str) -> Behaviour:
    """How much what was written is of a class, and how fluent it is beside what the plain model writes."""
    concept = judge.chances(steered.continuations, label)
    fluency = np.minimum(1.0, np.exp(plain.losses.mean() - steered.losses))
    score = 2 * concept * fluency / np.maximum(concept + fluency, TINY)
    return Behaviour(mean(concept), mean(fluency), mean(score), steered.texts[0])
