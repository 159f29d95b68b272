"""The rows of an explanation generation while it is made, and their publication."""

from __future__ import annotations

import json
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np

from feature_store.records import Concept
from feature_store.writer import GenerationWriter
from sae.interpret.evidence import SPLIT_ID, Counts, Evidence
from sae.interpret.explainers import Explainer, Proposal
from sae.interpret.intervals import NOTHING, Interval, balanced_accuracy, proportion
from sae.interpret.scorers import Label, Scored

COLUMNS = {
    "explanation": ("id", "feature", "best_rule", "explainer", "text", "rule", "chosen"),
    "score": (
        "feature", "explanation", "scorer", "metric", "value", "low", "high", "chance", "baseline", "n_pos", "n_neg",
        "n_failed", "seed", "split", "judge", "prompt",
    ),
    "label": ("feature", "explainer", "text", "score"),
    "concept": ("concept", "parent", "name", "coverage", "purity", "features"),
}  # fmt: skip


def choose(proposals: list[tuple[Explainer, Proposal]]) -> int | None:
    """Index of the label: the best F2 on the explain part, of which a less simple kind loses its margin.

    The test part has no say in the choice, so the chosen label's test score is an honest one.
    """
    scores = [proposal.explain.f2 * (1 - explainer.margin) for explainer, proposal in proposals]
    usable = [i for i, score in enumerate(scores) if not isnan(score)]
    return max(usable, key=lambda i: scores[i]) if usable else None


def rule_interval(counts: Counts, n_documents: int, n_silent_documents: int) -> Interval:
    """Balanced accuracy of a rule; a document counts as one trial, so that a repetitive file cannot narrow it."""
    positive, negative = min(counts.n_pos, n_documents), min(counts.n_neg, n_silent_documents)
    recall = proportion(counts.hits / max(counts.n_pos, 1) * positive, positive)
    silent = proportion((1 - counts.false / max(counts.n_neg, 1)) * negative, negative)
    return balanced_accuracy(recall, silent)


def precision_interval(counts: Counts, n_documents: int, n_silent_documents: int) -> Interval:
    """Precision at the tokens' own prevalence; its ends come from those of both rates, so it is wide rather than narrow."""
    positive, negative = min(counts.n_pos, n_documents), min(counts.n_neg, n_silent_documents)
    if counts.n_pos == 0 or counts.n_neg == 0:
        return NOTHING
    recall = proportion(counts.hits / counts.n_pos * positive, positive)
    false = proportion(counts.false / counts.n_neg * negative, negative)

    def at(hit: float, wrong: float) -> float:
        true = hit * counts.positive_share
        return true / max(true + wrong * (1 - counts.positive_share), 1e-30)

    return Interval(counts.precision, at(recall.low, false.high), at(recall.high, false.low))


class Generation:
    """Explanations, scores and labels; what other features already had can be taken over."""

    def __init__(self, seed: int):
        self.seed = seed
        self.explanation: list[dict[str, Any]] = []
        self.score: list[list[Any]] = []
        self.label: dict[int, list[Any]] = {}
        self.concepts: list[Concept] = []
        self._chosen: dict[int, int] = {}

    def keep(self, held: dict[str, list[tuple[Any, ...]]], only: range) -> None:
        """Takes over the rows of features outside `only`."""
        ids: dict[int, int] = {}
        for row in held["explanation"]:
            explanation = dict(zip(COLUMNS["explanation"], row, strict=True))
            if explanation["feature"] not in only:
                ids[explanation["id"]] = len(self.explanation)
                self.explanation.append(explanation | {"id": len(self.explanation)})
        for feature, explanation, *rest in held["score"]:
            if feature not in only:
                self.score.append([feature, None if explanation is None else ids[explanation], *rest])
        self._chosen |= {e["feature"]: e["id"] for e in self.explanation if e["chosen"]}
        self.label |= {row[0]: list(row) for row in held["label"] if row[0] not in only}

    def append(self, other: Generation) -> int:
        """Takes over all rows of other features behind the own; returns how much their explanations' ids moved."""
        moved = len(self.explanation)
        self.explanation += [e | {"id": e["id"] + moved} for e in other.explanation]
        self.score += [[f, None if e is None else e + moved, *rest] for f, e, *rest in other.score]
        self.label |= other.label
        self._chosen |= {feature: key + moved for feature, key in other._chosen.items()}
        return moved

    def add_rules(
        self, evidence: Evidence, feature: int, explainers: list[Explainer]
    ) -> tuple[Label | None, int | None]:
        """Adds the proposals of all explainers with their rules' scores; returns (chosen label, its id)."""
        made = [(e, p) for e in explainers if (p := e.explain(evidence, feature)) is not None]
        best = choose(made)
        documents = evidence.test_documents_fired(feature), len(evidence.events.test_documents)
        token = next((p.test.balanced_accuracy for e, p in made if e.name == "token"), nan)
        chosen: tuple[Label | None, int | None] = (None, None)
        for index, (explainer, proposal) in enumerate(made):
            rule = json.dumps(sorted(proposal.rule, key=str))
            key = self.add_text(feature, explainer.name, proposal.text, rule)
            counts = proposal.test
            accuracy = Scored(
                "balanced_accuracy", rule_interval(counts, *documents), 0.5, counts.n_pos, counts.n_neg, baseline=token
            )
            precision = Scored(
                "precision", precision_interval(counts, *documents), counts.positive_share, counts.n_pos, counts.n_neg
            )
            self.add_score("rule", feature, key, accuracy)
            self.add_score("rule", feature, key, precision)
            if index == best:
                self.explanation[key]["best_rule"] = True
                self.choose(key, accuracy.interval.value)
                chosen = Label(feature, explainer.name, proposal.text, proposal.rule), key
        return chosen

    def add_text(self, feature: int, explainer: str, text: str, rule: str | None) -> int:
        """Adds an explanation and returns its id."""
        row = (len(self.explanation), feature, False, explainer, text, rule, False)
        self.explanation.append(dict(zip(COLUMNS["explanation"], row, strict=True)))
        return len(self.explanation) - 1

    def choose(self, key: int, score: float) -> None:
        """Makes an explanation its feature's label."""
        made = self.explanation[key]
        feature = made["feature"]
        if feature in self._chosen:
            self.explanation[self._chosen[feature]]["chosen"] = False
        self._chosen[feature] = key
        made["chosen"] = True
        self.label[feature] = [feature, made["explainer"], made["text"], _number(score)]

    def rules(self) -> list[Label]:
        """The best rule of every feature, whatever its label, in the order of features."""
        best = sorted((e for e in self.explanation if e["best_rule"]), key=lambda e: e["feature"])
        return [Label(e["feature"], e["explainer"], e["text"], frozenset(json.loads(e["rule"]))) for e in best]

    def add_score(
        self, scorer: str, feature: int, explanation: int | None, found: Scored, judge: str | None = None,
        prompt: str | None = None,
    ) -> None:  # fmt: skip
        """Adds a score of an explanation, or of the feature itself where `explanation` is None."""
        self.score.append([
            feature, explanation, scorer, found.metric, *map(_number, found.interval), found.chance,
            _number(found.baseline), found.n_pos, found.n_neg, found.n_failed, self.seed, SPLIT_ID, judge, prompt,
        ])  # fmt: skip

    def publish(self, store: Path) -> None:
        """Writes the generation and makes it the current one."""
        writer = GenerationWriter(store, "explanations")
        writer.meta({"split": SPLIT_ID, "seed": self.seed})
        rows: dict[str, list[Any]] = {
            "explanation": [list(e.values()) for e in self.explanation],
            "score": self.score,
            "label": list(self.label.values()),
        }
        rows["concept"] = [
            [c.concept, c.parent, c.name, c.coverage, c.purity, np.array(c.features, "<u4").tobytes()]
            for c in self.concepts
        ]
        for table, names in COLUMNS.items():
            if rows[table]:
                writer.insert(table, dict(zip(names, map(list, zip(*rows[table], strict=True)), strict=True)))
        writer.publish()


def _number(value: float) -> float | None:
    return None if isnan(value) else value
