"""Labels every live feature without a language model and publishes an explanation generation."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from feature_store.queries import Store
from feature_store.writer import GenerationWriter
from sae.interpret.evidence import SPLIT_ID, Evidence
from sae.interpret.explainers import EXPLAINERS, Explainer, Proposal
from sae.section import Section


class InterpretConfig(Section):
    """Which kinds of explanation are tried."""

    explainers: tuple[str, ...] = Field(
        default=tuple(EXPLAINERS), description="Explainers to run; all of them by default."
    )

    @field_validator("explainers")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in value if name not in EXPLAINERS]
        if unknown or not value:
            raise ValueError(f"allowed explainers are {', '.join(EXPLAINERS)}")
        return value


def choose(proposals: list[tuple[Explainer, Proposal]]) -> int | None:
    """Index of the label: the best on the explain part, where a less simple kind must win by its margin.

    The test part has no say in the choice, so the chosen label's test score is an honest one.
    """
    usable = [i for i, (_, p) in enumerate(proposals) if not isnan(p.explain_score)]
    return max(usable, key=lambda i: proposals[i][1].explain_score - proposals[i][0].margin) if usable else None


def label(folder: Path, config: InterpretConfig, report: Callable[[int, int], None]) -> dict[str, Any]:
    """Explains all live features of the store under `folder`, publishes, and returns a summary of the scores."""
    store = Store(folder / "store")
    evidence = Evidence(store)
    explainers = [EXPLAINERS[name] for name in config.explainers]
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "feature", "explainer", "text", "chosen")}
    scores: dict[str, list[Any]] = {n: [] for n in ("explanation", "metric", "value", "n_pos", "n_neg")}
    labels: dict[str, list[Any]] = {name: [] for name in ("feature", "explainer", "text", "score")}
    alive = evidence.alive()
    for number, feature in enumerate(alive):
        made = [(e, p) for e in explainers if (p := e.explain(evidence, feature)) is not None]
        best = choose(made)
        for index, (explainer, proposal) in enumerate(made):
            key = len(columns["id"])
            value = None if isnan(proposal.test_score) else proposal.test_score
            for name, item in zip(columns, (key, feature, explainer.name, proposal.text, index == best), strict=True):
                columns[name].append(item)
            row = (key, "balanced_accuracy", value, proposal.n_pos, proposal.n_neg)
            for name, item in zip(scores, row, strict=True):
                scores[name].append(item)
            if index == best:
                for name, item in zip(labels, (feature, explainer.name, proposal.text, value), strict=True):
                    labels[name].append(item)
        if number % 64 == 0:
            report(number, len(alive))
    store.close()
    _publish(folder, columns, scores, labels)
    return _summary(labels, len(alive))


def _publish(folder: Path, columns: dict[str, Any], scores: dict[str, Any], labels: dict[str, Any]) -> None:
    writer = GenerationWriter(folder / "store", "explanations")
    writer.meta({"split": SPLIT_ID})
    n = len(scores["explanation"])
    if n:
        writer.insert("explanation", columns)
        constant = {"scorer": ["rule"] * n, "chance": [0.5] * n, "split": [SPLIT_ID] * n}
        writer.insert("score", {**scores, **constant})
        writer.insert("label", labels)
    writer.publish()


def _summary(labels: dict[str, list[Any]], n_alive: int) -> dict[str, Any]:
    values = sorted(v for v in labels["score"] if v is not None)
    kinds = {name: labels["explainer"].count(name) for name in EXPLAINERS}
    return {
        "features_alive": n_alive,
        "features_labelled": len(labels["feature"]),
        "labels_by_explainer": kinds,
        "median_balanced_accuracy": values[len(values) // 2] if values else None,
        "chance": 0.5,
        "split": SPLIT_ID,
    }
