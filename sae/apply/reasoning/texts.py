"""Rules on real texts: which concepts a dictionary sees in them, what follows, and steering by what was concluded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.apply.concept import scores_of
from sae.apply.edit import DirectionEdit, EditPlan, Sampling, generate
from sae.apply.reasoning.rules import Closure, Rule, closure, observed
from sae.apply.text_codes import TextReader
from sae.apply.token_concept import strongest_tokens
from sae.errors import ConfigError

STEERED = 10  # features of a concept that its direction is made of
FACTOR = 0.5  # of the norm of the last activation

StoredConcepts = Mapping[str, Mapping[str, Any]]


class Truth(NamedTuple):
    """Which observed concept each text has, by how much its score is above the concept's threshold, and the position of the
    token that shows it (-1: the concept was learned from whole texts).
    """

    names: list[str]
    holds: Bool[np.ndarray, "texts concepts"]
    margin: Float[np.ndarray, "texts concepts"]
    position: Int[np.ndarray, "texts concepts"]

    def facts(self, text: int) -> frozenset[str]:
        """The concepts of one text."""
        return frozenset(name for name, yes in zip(self.names, self.holds[text], strict=True) if yes)


class Continued(NamedTuple):
    """What follows from a prompt, what the model writes after it, and what it writes when steered by the conclusions."""

    closure: Closure
    plain: str
    steered: str


def check_known(rules: list[Rule], concepts: StoredConcepts) -> None:
    """Raises `ConfigError` if the dictionary has not learned a concept that the rules observe."""
    missing = [name for name in observed(rules) if name not in concepts]
    if missing:
        raise ConfigError(
            f"the rules observe {', '.join(missing)}, which this dictionary has no concept of. It has: "
            f"{', '.join(sorted(concepts)) or 'none'}. `sae concept add` learns one from texts."
        )


def truth_of(reader: TextReader, rules: list[Rule], concepts: StoredConcepts, texts: list[str]) -> Truth:
    """The observed concepts of every text, by the thresholds that were chosen when the concepts were learned."""
    check_known(rules, concepts)
    names = observed(rules)
    codes = reader.read_every(texts)
    maxima = codes.maxima()
    margin = np.zeros((len(texts), len(names)))
    position = np.full((len(texts), len(names)), -1)
    for column, name in enumerate(names):
        stored = concepts[name]
        if stored.get("scope") == "token":
            strongest = strongest_tokens(stored, codes)
            score, position[:, column] = strongest.score, strongest.position
        else:
            score = scores_of(stored, maxima)
        margin[:, column] = score - stored["threshold"]
    return Truth(names, margin > 0, margin, position)


def closures(rules: list[Rule], truth: Truth) -> list[Closure]:
    """What follows from the concepts of every text."""
    return [closure(rules, truth.facts(text)) for text in range(len(truth.holds))]


def direction_of(
    reader: TextReader, concepts: StoredConcepts, names: list[str], *, norm: float
) -> Float[Tensor, " d_out"]:
    """The direction of some concepts, half of `norm` long: decoder rows of their first ten features of positive weight.

    Row j of a concept is weighted by 1 - ln(j + 1) / ln(K + 1), the strongest first, and all concepts are added up.
    """
    total = torch.zeros(reader.sae.d_out, device=reader.sae.W_dec.device)
    for name in names:
        stored = concepts[name]
        pairs = sorted(zip(stored["weights"], stored["features"], strict=True), reverse=True)
        features = [feature for weight, feature in pairs[:STEERED] if weight > 0]
        decay = 1 - torch.arange(len(features)).add(1).log() / np.log(len(features) + 1)
        total += decay.to(total) @ F.normalize(reader.sae.W_dec[features], dim=1)
    return F.normalize(total, dim=0) * norm * FACTOR


def steered(
    reader: TextReader, rules: list[Rule], concepts: StoredConcepts, prompt: str, *, n_tokens: int = 40
) -> Continued:
    """What follows from a prompt, what the model writes after it, and what it writes when steered towards the conclusions.

    Conclusions that the dictionary has no concept of steer nothing. The direction is added at every generated token.
    """
    result = closure(rules, truth_of(reader, rules, concepts, [prompt]).facts(0))
    names = [step.concept for step in result.steps if step.concept in concepts]
    norm = float(np.linalg.norm(reader.activations([prompt], "last")))
    edits = (DirectionEdit(direction_of(reader, concepts, names, norm=norm)),) if names else ()
    plain, changed = (
        generate(reader.lm, reader.sae, prompt, EditPlan(part, positions="last"), sampling=Sampling(n_tokens))[0]
        for part in ((), edits)
    )
    return Continued(result, plain, changed)
