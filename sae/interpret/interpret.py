"""Explains and scores features, without a language model or with a judge, and publishes an explanation generation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from feature_store import queries
from feature_store.queries import Store
from sae.foundation.distributed import ALONE, Group
from sae.foundation.files import write_bytes
from sae.foundation.section import Section
from sae.interpret.concept_names import named_by
from sae.interpret.concepts import as_json, group
from sae.interpret.events import activation_levels
from sae.interpret.evidence import SPLIT_ID, Evidence
from sae.interpret.explainers import EXPLAINERS, JUDGED_EXPLAINERS
from sae.interpret.generation import Generation
from sae.interpret.judge import Judge, JudgeConfig
from sae.interpret.judge_features import judge_features
from sae.interpret.running import Running
from sae.interpret.scorers import JUDGED_SCORERS, NULLS, SCORERS, Case, Label
from sae.publish import parquet

DRAWN = 20 * NULLS  # so many draws hold enough different labels even where many are the same
WITH_A_JUDGE = ("max_activation",), ("detection", "judged_confidence")


class InterpretConfig(Section):
    """Which explanations are tried and which scores are computed."""

    explainers: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Explainers to run; none: all without a judge, and max_activation with one.",
    )
    scorers: tuple[str, ...] | None = Field(
        default=None,
        description="Scorers to run; none: those that need the store only, detection and judged_confidence with a judge.",
    )
    judge: JudgeConfig | None = Field(
        default=None, description="A language model that explains and scores; none: no model."
    )

    @model_validator(mode="after")
    def _known(self) -> InterpretConfig:
        for kind, names, free, judged in (
            ("explainer", self.explainers, EXPLAINERS, JUDGED_EXPLAINERS), ("scorer", self.scorers, SCORERS, JUDGED_SCORERS)
        ):  # fmt: skip
            for name in names or ():
                if name not in free and name not in judged:
                    raise ValueError(f"no {kind} {name!r}; allowed are {', '.join((*free, *judged))}")
                if name in judged and self.judge is None:
                    raise ValueError(f"{kind} {name!r} asks a judge: set judge.base_url and judge.model")
        return self

    def named(self, kind: int) -> tuple[str, ...]:
        """Explainers (0) or scorers (1) that run."""
        given = (self.explainers, self.scorers)[kind]
        if given is not None:
            return given
        free = (EXPLAINERS, [name for name, scorer in SCORERS.items() if scorer.by_default])[kind]
        return (*free, *(WITH_A_JUDGE[kind] if self.judge else ()))


def interpret(
    folder: Path,
    config: InterpretConfig,
    report: Callable[..., None],
    running: Callable[[], Running],
    only: range | None = None,
    several: Group = ALONE,
) -> dict[str, Any]:
    """Explains and scores the live features of the store under `folder`, publishes, and returns a summary.

    With `only`, other features keep what the published generation holds of them. `report` is given the steps done,
    the steps in all, and facts by name. `running` loads the model; it is called where a scorer runs it. Of `several`
    processes each has a range of the features; the first asks the judge, groups concepts and publishes.
    """
    with closing(Store(folder / "store")) as store:
        evidence, generation = Evidence(store), Generation(store.meta["seed"])
        every = evidence.alive()
        alive = every if only is None else [f for f in every if f in only]
        if only is not None:
            generation.keep(queries.interpretation(store), only)
        own = alive[several.part(len(alive))]
        labels = _explain(evidence, generation, own, config, report, several)
        levels, pool = activation_levels(store), generation.rules()

        def case(feature: int) -> Case:
            label = labels[feature][0]
            others = _others(pool, feature, label, generation.seed)
            return Case(evidence, feature, label, others, levels, generation.seed, running)

        found = Generation(generation.seed)
        _score(found, [(case(f), labels[f][1]) for f in own], [n for n in config.named(1) if n in SCORERS], report)
        for rows in several.values(found.score):
            generation.score += rows

        def finish() -> dict[str, Any]:
            rules = {label.feature: label for label in generation.rules()}
            generation.concepts = group(store, rules, every, generation.seed)
            if config.judge is None:
                return {}
            with closing(Judge(config.judge, folder / "judge_answers.sqlite")) as judge:
                return {"judge": _judge(generation, [case(f) for f in alive], config, judge, report)}

        spent = several.from_first(finish)
    return several.from_first(lambda: _publish(folder, generation, len(every)) | spent)


def _publish(folder: Path, generation: Generation, n_alive: int) -> dict[str, Any]:
    """Writes everything that people download, and returns the summary."""
    generation.publish(folder / "store")
    write_bytes(folder / "concepts.json", as_json(generation.concepts, n_alive).encode())
    parquet.write_concepts(folder / "concepts.parquet", generation.concepts)
    with closing(Store(folder / "store")) as published:
        parquet.write_features(folder / "features.parquet", published)
    return _summary(generation, n_alive)


def _explain(
    evidence: Evidence, generation: Generation, own: list[int], config: InterpretConfig, report: Callable[..., None],
    several: Group,
) -> dict[int, tuple[Label | None, int | None]]:  # fmt: skip
    """Adds the model-free explanations of all processes; by feature the label and its id."""
    explainers = [EXPLAINERS[name] for name in config.named(0) if name in EXPLAINERS]
    made, found, labels = Generation(generation.seed), {}, {}
    for number, feature in enumerate(own):
        found[feature] = made.add_rules(evidence, feature, explainers)
        if number % 64 == 0:
            report(number, 2 * len(own))
    for rows, chosen in several.values((made, found)):
        moved = generation.append(rows)
        labels |= {f: (label, None if key is None else key + moved) for f, (label, key) in chosen.items()}
    return labels


def _score(
    generation: Generation, cases: list[tuple[Case, int | None]], names: list[str], report: Callable[..., None]
) -> None:
    for number, (case, key) in enumerate(cases):
        for name in names:
            for found in SCORERS[name].score(case):
                generation.add_score(name, case.feature, key if SCORERS[name].about_label else None, found)
        if number % 64 == 0:
            report(len(cases) + number, 2 * len(cases))


def _judge(
    generation: Generation, cases: list[Case], config: InterpretConfig, judge: Judge, report: Callable[..., None]
) -> dict[str, Any]:
    """Adds what the judge says of features and concepts; returns what was spent."""
    explainers = [JUDGED_EXPLAINERS[n] for n in config.named(0) if n in JUDGED_EXPLAINERS]
    scorers = [JUDGED_SCORERS[n] for n in config.named(1) if n in JUDGED_SCORERS]
    judge_features(generation, cases, explainers, scorers, judge, report)
    labels = {feature: text for feature, _, text, _ in generation.label.values()}
    own = {feature for feature, explainer, _, _ in generation.label.values() if explainer in JUDGED_EXPLAINERS}
    generation.concepts = named_by(judge, generation.concepts, labels, own)
    return judge.spent._asdict() | {"cost": judge.cost}


def _others(pool: list[Label], feature: int, label: Label | None, seed: int) -> tuple[Label, ...]:
    """Labels of other features, drawn at random, but those that say the same: the shuffled null."""
    if not pool:
        return ()
    drawn = dict.fromkeys(np.random.default_rng((seed, feature, 1)).integers(0, len(pool), DRAWN).tolist())
    different = (
        o for o in map(pool.__getitem__, drawn) if o.feature != feature and (label is None or o.text != label.text)
    )
    return tuple(itertools.islice(different, NULLS))


def _summary(generation: Generation, n_alive: int) -> dict[str, Any]:
    labels = list(generation.label.values())
    values = sorted(value for *_, value in labels if value is not None)
    reached = [row[4] for row in generation.score if row[3] == "null_reached"]
    kinds = [explainer for _, explainer, _, _ in labels]
    return {
        "features_alive": n_alive,
        "features_labelled": len(labels),
        "labels_by_explainer": {name: kinds.count(name) for name in dict.fromkeys((*EXPLAINERS, *kinds))},
        "median_balanced_accuracy": values[len(values) // 2] if values else None,
        "chance": 0.5,
        "features_tested_against_null": len(reached),
        "share_beating_null": sum(r == 0 for r in reached) / len(reached) if reached else None,
        "concepts": sum(c.parent is None for c in generation.concepts),
        "concepts_second_level": sum(c.parent is not None for c in generation.concepts),
        "split": SPLIT_ID,
        "seed": generation.seed,
    }
