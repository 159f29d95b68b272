"""An explanation generation while it is built: its rows, the choice of the label among rules, and its publication."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from math import isnan, nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from feature_store.packing import JUDGED
from feature_store.records import Concept, ExplanationRow, Interpretation, JudgedRow, LabelRow, Score, ScoreRow
from feature_store.writer import GenerationWriter
from sae.interpret.events import Event
from sae.interpret.evidence import SPLIT_ID, Counts, Evidence
from sae.interpret.explainer import Explainer, Proposal
from sae.interpret.feature_map import Places
from sae.interpret.intervals import NOTHING, Interval, balanced_accuracy, proportion
from sae.interpret.scorer import Figure, Label

HUMAN = "human"  # the explainer that people are
LEAST_F2 = 0.05  # of a rule that says what a feature is; judged by eye on 40 labels (docs/results.md)


def best_proposal(
    proposals: list[tuple[Explainer, Proposal]], evidence: Evidence, strongest: list[Event]
) -> int | None:
    """Index of the label: the proposal with the best F2 on the explain part, after a less simple kind loses its margin.

    Its rule must match at least half of the strongest contexts, so that a reader finds it there, and have an F2 of
    `LEAST_F2`: "capitalised words" matches much and tells little. A last resort is taken if none does. The test part has no say in the choice, so the chosen label's test score is an honest one.
    """

    def describes(explainer: Explainer, proposal: Proposal) -> bool:
        hits = sum(not proposal.rule.isdisjoint(explainer.items(evidence, event)) for event in strongest)
        is_told_apart = proposal.explain.f2 >= LEAST_F2
        return not explainer.is_last_resort and is_told_apart and 2 * hits >= len(strongest)

    scores = [proposal.explain.f2 * (1 - explainer.margin) for explainer, proposal in proposals]
    usable = [i for i, score in enumerate(scores) if not isnan(score)]
    fitting = [i for i in usable if describes(*proposals[i])]
    last_resorts = [i for i in usable if proposals[i][0].is_last_resort]
    candidates = fitting or last_resorts or usable
    return max(candidates, key=lambda i: scores[i]) if candidates else None


def rule_interval(counts: Counts, n_documents: int, n_silent_documents: int) -> Interval:
    """Balanced accuracy of a rule. A document counts as one trial, so that a repetitive file cannot narrow it."""
    positive, negative = min(counts.n_pos, n_documents), min(counts.n_neg, n_silent_documents)
    recall = proportion(counts.hits / max(counts.n_pos, 1) * positive, positive)
    silent = proportion((1 - counts.false / max(counts.n_neg, 1)) * negative, negative)
    return balanced_accuracy(recall, silent)


def precision_interval(counts: Counts, n_documents: int, n_silent_documents: int) -> Interval:
    """Precision at the tokens' own prevalence. Its ends come from those of both rates, so it is rather too wide."""
    positive, negative = min(counts.n_pos, n_documents), min(counts.n_neg, n_silent_documents)
    if counts.n_pos == 0 or counts.n_neg == 0:
        return NOTHING

    recall = proportion(counts.hits / counts.n_pos * positive, positive)
    false_alarms = proportion(counts.false / counts.n_neg * negative, negative)

    def precision(hit_rate: float, false_rate: float) -> float:
        true = hit_rate * counts.positive_share
        return true / max(true + false_rate * (1 - counts.positive_share), 1e-30)

    return Interval(
        counts.precision, precision(recall.low, false_alarms.high), precision(recall.high, false_alarms.low)
    )


def f2_interval(counts: Counts, n_documents: int, n_silent_documents: int) -> Interval:
    """F2 of a rule, which rises with recall and with precision, so that its ends come from those of both."""
    positive = min(counts.n_pos, n_documents)
    precision = precision_interval(counts, n_documents, n_silent_documents)
    if precision == NOTHING:
        return NOTHING

    recall = proportion(counts.hits / counts.n_pos * positive, positive)

    def f2(precise: float, recalled: float) -> float:
        return 5 * precise * recalled / max(4 * precise + recalled, 1e-30)

    return Interval(counts.f2, f2(precision.low, recall.low), f2(precision.high, recall.high))


class ChosenLabel(NamedTuple):
    """The label of a feature and the id of its explanation; None if nothing explains the feature."""

    label: Label | None = None
    explanation: int | None = None


class ExplanationTable:
    """Explanations, scores, labels and concepts; rows of other features can be taken over."""

    def __init__(self, seed: int):
        self.seed = seed
        self.explanations: list[ExplanationRow] = []
        self.scores: list[ScoreRow] = []
        self.labels: dict[int, LabelRow] = {}
        self.concepts: list[Concept] = []
        self.judged: list[JudgedRow] = []
        self.places: Places | None = None
        self._chosen: dict[int, int] = {}  # feature -> id of its chosen explanation

    def keep(self, published: Interpretation, relabelled: range) -> None:
        """Takes over the published rows of features outside `relabelled`."""
        new_ids: dict[int, int] = {}
        for row in published.explanations:
            if row.feature not in relabelled:
                new_ids[row.id] = len(self.explanations)
                self.explanations.append(replace(row, id=len(self.explanations)))

        for row in published.scores:
            if row.feature not in relabelled:
                explanation = None if row.explanation is None else new_ids[row.explanation]
                self.scores.append(replace(row, explanation=explanation))

        self.judged += [
            replace(row, explanation=new_ids[row.explanation])
            for row in published.judged
            if row.feature not in relabelled
        ]
        self._chosen |= {row.feature: row.id for row in self.explanations if row.chosen}
        self.labels |= {row.feature: row for row in published.labels if row.feature not in relabelled}

    def append(self, other: ExplanationTable) -> int:
        """Takes over all rows of another table, of other features; returns how far their explanations' ids moved."""
        offset = len(self.explanations)
        self.explanations += [replace(row, id=row.id + offset) for row in other.explanations]
        self.scores += [
            replace(row, explanation=None if row.explanation is None else row.explanation + offset)
            for row in other.scores
        ]
        self.judged += [replace(row, explanation=row.explanation + offset) for row in other.judged]
        self.labels |= other.labels
        self._chosen |= {feature: key + offset for feature, key in other._chosen.items()}
        return offset

    def add_rules(self, evidence: Evidence, feature: int, explainers: list[Explainer]) -> ChosenLabel:
        """Adds the proposals of all explainers with their rules' scores; returns the chosen label.

        What people said that has no rule is added without a score; only a judge can test it.
        """
        proposals = [(explainer, p) for explainer in explainers for p in explainer.proposals(evidence, feature)]
        best = best_proposal(proposals, evidence, evidence.strongest(feature))
        n_documents = evidence.n_documents_fired(feature), len(evidence.events.test_documents)
        baseline = next((p.test.balanced_accuracy for e, p in proposals if e.is_baseline), nan)

        chosen = ChosenLabel()

        for index, (explainer, proposal) in enumerate(proposals):
            rule = json.dumps(sorted(proposal.rule, key=str))
            key = self.add_text(feature, explainer.name, proposal.text, rule)
            counts = proposal.test
            accuracy = Figure(
                "balanced_accuracy",
                rule_interval(counts, *n_documents),
                chance=0.5,
                n_pos=counts.n_pos,
                n_neg=counts.n_neg,
                baseline=baseline,
            )
            precision = Figure(
                "precision",
                precision_interval(counts, *n_documents),
                chance=counts.positive_share,
                n_pos=counts.n_pos,
                n_neg=counts.n_neg,
            )
            share = counts.positive_share
            everything = 5 * share / (4 * share + 1)  # what a rule that matches every token reaches
            f2 = Figure("f2", f2_interval(counts, *n_documents), everything, counts.n_pos, n_neg=counts.n_neg)
            self.add_score("rule", feature, key, accuracy)
            self.add_score("rule", feature, key, f2)
            self.add_score("rule", feature, key, precision)
            if index == best:
                self.explanations[key] = replace(self.explanations[key], best_rule=True)
                self.choose(key, accuracy, f2.interval.value)
                chosen = ChosenLabel(Label(feature, explainer.name, proposal.text, proposal.rule), key)

        tested = {proposal.text for _, proposal in proposals}
        for text in evidence.said.get(feature, ()):
            if text not in tested:
                self.add_text(feature, HUMAN, text, None)

        return chosen

    def said(self, features: set[int]) -> list[ExplanationRow]:
        """What people said of some features, in the order of explanations."""
        return [row for row in self.explanations if row.explainer == HUMAN and row.feature in features]

    def add_text(self, feature: int, explainer: str, text: str, rule: str | None) -> int:
        """Adds an explanation and returns its id."""
        key = len(self.explanations)
        self.explanations.append(
            ExplanationRow(key, feature, best_rule=False, explainer=explainer, text=text, rule=rule, chosen=False)
        )
        return key

    def choose(self, key: int, score: Figure, f2: float = nan) -> None:
        """Makes an explanation its feature's label; `f2` is that of its rule, if it has one."""
        feature = self.explanations[key].feature
        if feature in self._chosen:
            former = self._chosen[feature]
            self.explanations[former] = replace(self.explanations[former], chosen=False)
        self._chosen[feature] = key
        row = self.explanations[key] = replace(self.explanations[key], chosen=True)
        value, low, high = map(_none_if_nan, score.interval)
        self.labels[feature] = LabelRow(
            feature, row.explainer, row.text, value, low=low, high=high, n_pos=score.n_pos, f2=_none_if_nan(f2)
        )

    def rules(self) -> list[Label]:
        """The best rule of every feature, whatever its label, in the order of features."""
        best = sorted((row for row in self.explanations if row.best_rule), key=lambda row: row.feature)
        return [Label(row.feature, row.explainer, row.text, frozenset(json.loads(row.rule or "[]"))) for row in best]

    def add_score(
        self,
        scorer: str,
        feature: int,
        explanation: int | None,
        figure: Figure,
        *,
        judge: str | None = None,
        prompt: str | None = None,
    ) -> None:
        """Adds a score of an explanation, or of the feature itself if `explanation` is None."""
        value, low, high = map(_none_if_nan, figure.interval)
        score = Score(
            scorer=scorer,
            metric=figure.metric,
            value=value,
            low=low,
            high=high,
            chance=figure.chance,
            baseline=_none_if_nan(figure.baseline),
            n_pos=figure.n_pos,
            n_neg=figure.n_neg,
            n_failed=figure.n_failed,
            seed=self.seed,
            split=SPLIT_ID,
            judge=judge,
            prompt=prompt,
        )
        self.scores.append(ScoreRow(feature, explanation, score))
        if figure.windows and explanation is not None:
            self.judged.append(JudgedRow(feature, explanation, scorer, figure.windows))

    def publish(self, store: Path, floor: float | None) -> None:
        """Writes the generation and makes it the current one; `floor` is the F2 that labels of random directions reach."""
        writer = GenerationWriter(store, "explanations")
        writer.meta({"split": SPLIT_ID, "seed": self.seed, "floor": floor})
        tables: dict[str, list[dict[str, Any]]] = {
            "explanation": [asdict(row) for row in self.explanations],
            "score": [
                {"feature": row.feature, "explanation": row.explanation, **vars(row.score)} for row in self.scores
            ],
            "label": [asdict(row) for row in self.labels.values()],
            "concept": [_concept_columns(concept) for concept in self.concepts],
            "judged": [
                vars(row) | {"windows": np.array([tuple(w) for w in row.windows], JUDGED).tobytes()}
                for row in sorted(self.judged, key=lambda row: (row.feature, row.explanation, row.scorer))
            ],
        }
        for table, rows in tables.items():
            if rows:
                writer.insert(table, {name: [row[name] for row in rows] for name in rows[0]})

        if self.places is not None:
            writer.insert("place", self.places._asdict())
        writer.publish()


def _concept_columns(concept: Concept) -> dict[str, Any]:
    columns = {field.name: getattr(concept, field.name) for field in fields(concept)}
    return columns | {"features": np.array(concept.features, "<u4").tobytes()}


def _none_if_nan(value: float) -> float | None:
    return None if isnan(value) else value
