"""The frozen types of the store's rows and of what its queries return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Integer, UInt


@dataclass(frozen=True)
class Window:
    """One activating context, cut around its peak."""

    group: str  # "top", or "stratum"
    rank: int
    stratum: int
    document: int
    document_name: str
    context: int
    place: int  # of the peak's token in its document or context
    peak: int  # index of the peak inside the window
    token_ids: list[int]
    acts: list[float]
    copies: int
    percentile: float
    inclusion: float


@dataclass(frozen=True)
class Score:
    """A number about an explanation or a feature, with the ends of its 95 % interval; None if there was nothing to
    count.
    """

    scorer: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    chance: float
    baseline: float | None
    n_pos: int
    n_neg: int
    n_failed: int
    seed: int
    split: str
    judge: str | None
    prompt: str | None


@dataclass(frozen=True)
class Explanation:
    """A text about a feature, its explainer, and its scores; `chosen` marks the feature's label."""

    explainer: str
    text: str
    chosen: bool
    scores: list[Score] = field(default_factory=list)


@dataclass(frozen=True)
class FeatureRow:
    """A feature as a table shows it."""

    feature: int
    density: float
    n_fired: int
    mean_act: float
    max_act: float
    n_documents: int
    label: str | None
    explainer: str | None
    score: float | None
    low: float | None
    high: float | None
    n_pos: int | None
    f2: float | None
    strong_share: float | None  # of its firings, those that scores are measured on: at least a third of max_act


@dataclass(frozen=True)
class Feature:
    """Everything about a feature but its contexts."""

    row: FeatureRow
    histogram: list[int]
    histogram_log2_edges: list[float]
    promoted: list[tuple[int, float]]
    suppressed: list[tuple[int, float]]
    neighbours: list[tuple[int, float]]  # by cosine of decoder rows
    coactive: list[tuple[int, float]]  # by cosine of firing
    positions: list[int]  # strong firings by the place in the document (feature_store.indexing.formats.POSITION_EDGES)
    formats: list[int]  # strong firings by the token's look (feature_store.indexing.formats.FORMATS)
    explanations: list[Explanation]
    scores: list[Score]


@dataclass(frozen=True)
class Concept:
    """A named set of features; `parent` is the concept that contains this one."""

    concept: int
    parent: int | None
    name: str
    coverage: float
    purity: float
    features: list[int]


@dataclass(frozen=True)
class ExplanationRow:
    """A row of the table `explanation`. `rule` is JSON, or None for a text that only a judge can test."""

    id: int
    feature: int
    best_rule: bool  # the best of the feature's rules, whether or not a judge's text is its label
    explainer: str
    text: str
    rule: str | None
    chosen: bool


@dataclass(frozen=True)
class ScoreRow:
    """A row of the table `score`. `explanation` is None if the score is about the feature, whatever its label."""

    feature: int
    explanation: int | None
    score: Score


@dataclass(frozen=True)
class LabelRow:
    """A row of the table `label`: the chosen explanation of a feature and its held-out score.

    `low` and `high` are the ends of the score's 95 % interval, `n_pos` the firings that it was measured on, `f2` that of
    the text's rule.
    """

    feature: int
    explainer: str
    text: str
    score: float | None
    low: float | None
    high: float | None
    n_pos: int
    f2: float | None


class JudgedWindow(NamedTuple):
    """A window that a scorer read: the feature whose window it is (`packing.RANDOM`: a random one), and its number there;
    whether the scored feature fires in it, and what was said (`packing.SILENT`, `FIRES`, `UNREADABLE`).
    """

    feature: int
    number: int
    fires: bool
    said: int


@dataclass(frozen=True)
class JudgedRow:
    """A row of the table `judged`: the windows that one scorer read for one explanation."""

    feature: int
    explanation: int
    scorer: str
    windows: tuple[JudgedWindow, ...]


@dataclass(frozen=True)
class Interpretation:
    """All rows of a published explanation generation."""

    explanations: list[ExplanationRow]
    scores: list[ScoreRow]
    labels: list[LabelRow]
    judged: list[JudgedRow]


@dataclass(frozen=True)
class ActiveFeature:
    """A feature that fires in a document: the mean of its activation over the document's tokens, and the maximum."""

    feature: int
    mean_act: float
    max_act: float


@dataclass(frozen=True)
class Document:
    """A document of the index corpus and the features that fire most in it, the strongest first."""

    name: str
    features: list[ActiveFeature]


class WordsAround(NamedTuple):
    """Words around a feature's strong firings. `hits` counts the firings, `covered` the tokens, by the subset of the words
    (bit i: the i-th word) that their window holds, in (explain, test) documents.
    """

    words: list[str]
    hits: UInt[np.ndarray, "2 subsets"]
    covered: UInt[np.ndarray, "2 subsets"]


class RandomWindow(NamedTuple):
    """A window around a uniformly drawn token, cut like windows around peaks, with every feature that fires in it.

    `peak` is the token's index inside the window, `place` its index inside the document.
    """

    document: int
    token_ids: Integer[np.ndarray, " tokens"]
    peak: int
    place: int
    latents: Integer[np.ndarray, " latents"]


class TokenFirings(NamedTuple):
    """Strong firings by token; the rows of a feature begin at its number of `starts` and end where the next one's begin.

    n_explain, n_test: of the feature on the token, in the explain part and in the test part.
    """

    starts: Int[np.ndarray, " features_and_one"]
    tokens: Integer[np.ndarray, " rows"]
    n_explain: Integer[np.ndarray, " rows"]
    n_test: Integer[np.ndarray, " rows"]

    def of(self, feature: int) -> tuple[dict[int, int], dict[int, int]]:
        """Firings of one feature by token, in the explain part and in the test part."""
        rows = slice(self.starts[feature], self.starts[feature + 1])
        tokens = self.tokens[rows].tolist()
        explain, test = (dict(zip(tokens, n[rows].tolist(), strict=True)) for n in (self.n_explain, self.n_test))
        return explain, test


class Bigram(NamedTuple):
    """Strong firings of a feature on a token that follows another, and how often the pair occurs at all."""

    first: int
    second: int
    n_explain: int
    n_test: int
    occurs_explain: int
    occurs_test: int


class Bigrams(NamedTuple):
    """Pairs of tokens; the rows of a feature begin at its number of `starts` and end where the next one's begin."""

    starts: Int[np.ndarray, " features_and_one"]
    rows: Integer[np.ndarray, "rows 6"]

    def of(self, feature: int) -> list[Bigram]:
        """The pairs of one feature, the most frequent first."""
        return [Bigram(*row) for row in self.rows[self.starts[feature] : self.starts[feature + 1]].tolist()]


class FiringCount(NamedTuple):
    """Strong firings of a feature in all documents and in the test part, and test documents that hold one."""

    feature: int
    n_strong: int
    n_strong_test: int
    n_documents_test: int


class TokenCount(NamedTuple):
    """Occurrences of a token in the explain part and in the test part."""

    token: int
    n_explain: int
    n_test: int


class TokenHit(NamedTuple):
    """A feature that fires strongly on a token: how often, which share of its strong firings and of the token's
    occurrences that is.
    """

    feature: int
    times: int
    of_firings: float
    of_tokens: float
