"""Explains and scores features from the store, with the language model or with a judge, and publishes the results."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from feature_store import queries
from feature_store.dictionary_files import DictionaryCard, JudgeCost, LabelSummary
from feature_store.store import Store
from sae.foundation.distributed import ALONE, Processes
from sae.foundation.files import write_bytes
from sae.foundation.screen import Progress
from sae.foundation.section import Section
from sae.interpret.concepts import as_json, concepts_of
from sae.interpret.control_labels import ControlLabels, control_labels, label_figures
from sae.interpret.events import activation_levels
from sae.interpret.evidence import SPLIT_ID, Evidence
from sae.interpret.explainers import EXPLAINERS, JUDGED_EXPLAINERS
from sae.interpret.explanation_table import ChosenLabel, ExplanationTable
from sae.interpret.feature_map import places_of
from sae.interpret.judging.concept_names import named_by
from sae.interpret.judging.judge import Judge, JudgeConfig
from sae.interpret.judging.judge_features import judge_features
from sae.interpret.live_dictionary import LiveDictionary
from sae.interpret.said import texts_said
from sae.interpret.scorer import N_NULL_LABELS, Label, ScoringCase
from sae.interpret.scorers import JUDGED_SCORERS, SCORERS
from sae.interpret.scorers.confidence import Confidence
from sae.publish import parquet

N_DRAWN = 20 * N_NULL_LABELS  # so many draws hold enough different labels, even if many of them are the same
SHOW_EVERY = 64  # features between two updates of the progress

ANSWERS = "judge_answers.sqlite"  # what judges said, in the dictionary's folder


class InterpretConfig(Section):
    """Which explanations are tried and which scores are computed."""

    explainers: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Explainers to run; none: all that need no judge; a judge adds max_activation.",
    )
    scorers: tuple[str, ...] | None = Field(
        default=None,
        description="Scorers to run; none: those that need only the store; a judge adds detection, judged_confidence.",
    )
    judge: JudgeConfig | None = Field(
        default=None, description="A language model that explains and scores; none: no model."
    )

    people: Path | None = Field(
        default=None,
        description="File of what people said in the explorer, whose labels are scored as well; none: none.",
    )

    @model_validator(mode="after")
    def _names_are_known(self) -> InterpretConfig:
        for kind, names, free, judged in (
            ("explainer", self.explainers, EXPLAINERS, JUDGED_EXPLAINERS),
            ("scorer", self.scorers, SCORERS, JUDGED_SCORERS),
        ):
            for name in names or ():
                if name not in free and name not in judged:
                    raise ValueError(f"no {kind} {name!r}; allowed are {', '.join((*free, *judged))}")
                if name in judged and self.judge is None:
                    raise ValueError(f"{kind} {name!r} asks a judge: set judge.base_url and judge.model")
        return self

    @property
    def explainers_to_run(self) -> tuple[str, ...]:
        """The explainers that are named, or the defaults."""
        if self.explainers is not None:
            return tuple(dict.fromkeys((*self.explainers, *(("human",) if self.people else ()))))
        judged = [name for name, explainer in JUDGED_EXPLAINERS.items() if explainer.by_default and self.judge]
        return (*EXPLAINERS, *judged)

    @property
    def scorers_to_run(self) -> tuple[str, ...]:
        """The scorers that are named, or the defaults."""
        if self.scorers is not None:
            return self.scorers
        judged = [name for name, scorer in JUDGED_SCORERS.items() if scorer.by_default and self.judge]
        return (*(name for name, scorer in SCORERS.items() if scorer.by_default), *judged)


def interpret(
    folder: Path,
    config: InterpretConfig,
    live_dictionary: Callable[[], LiveDictionary],
    *,
    features: range | None = None,
    with_groups: bool = True,
    processes: Processes = ALONE,
    progress: Progress | None = None,
) -> LabelSummary:
    """Explains and scores the live features of the store under `folder`, publishes, and returns a summary.

    If `features` is given, other features keep what the published generation holds of them. Concepts and the map of all
    features are made `with_groups`. `live_dictionary` loads the
    model; it is called only if a scorer runs the model. Of several processes each has a range of the features; the
    first one asks the judge, groups concepts and publishes. The controls that were indexed beside the dictionary are
    labelled by the same explainers; nothing but their figures is kept.
    """
    progress = progress or Progress()
    controls = {
        path.parent.name: _label_control(path, config, processes) for path in sorted(folder.glob("controls/*/store"))
    }
    with closing(Store(folder / "store")) as store:
        evidence, table = Evidence(store, _said_of(folder, config)), ExplanationTable(store.meta["seed"])
        live_features, n_alive = evidence.to_label(), evidence.n_alive()
        features_to_label = live_features if features is None else [f for f in live_features if f in features]
        if features is not None:
            table.keep(queries.interpretation(store), features)

        cases = _label(
            evidence,
            table,
            features_to_label,
            config,
            live_dictionary=live_dictionary,
            processes=processes,
            progress=progress,
        )

        def group_and_judge() -> JudgeCost | None:
            best_rules = {label.feature: label for label in table.rules()}
            if with_groups:
                table.concepts = concepts_of(store, best_rules, live_features, table.seed)
                table.places = places_of(store, evidence.alive(), table.concepts, table.seed)
            if config.judge is None:
                return None
            with closing(Judge(config.judge, folder / ANSWERS)) as judge:
                return _judge(
                    table, [cases(feature) for feature in features_to_label], config, judge, progress=progress
                )

        cost = processes.on_first(group_and_judge)

    floor = controls["random"].floor if "random" in controls else None
    processes.on_first(lambda: _publish(folder, table, n_alive, floor))
    return processes.on_first(lambda: _summary(table, n_alive, cost, controls, floor=floor))


def _said_of(folder: Path, config: InterpretConfig) -> dict[int, list[str]]:
    """What people said of the features of a dictionary; nothing if no file is named."""
    return texts_said(config.people, DictionaryCard.read(folder).weights_sha256) if config.people else {}


def _label_control(store_folder: Path, config: InterpretConfig, processes: Processes) -> ControlLabels:
    """Figures of the labels of a control; only the scorer that figures are made of is run."""
    scorers = tuple(name for name in config.scorers_to_run if name == Confidence.name)
    without_judge = config.model_copy(update={"scorers": scorers, "judge": None, "people": None})
    with closing(Store(store_folder)) as store:
        evidence, table = Evidence(store), ExplanationTable(store.meta["seed"])
        features = evidence.to_label()
        _label(
            evidence,
            table,
            features,
            without_judge,
            live_dictionary=_no_model,
            processes=processes,
            progress=Progress(),
        )
    return processes.on_first(lambda: control_labels(table, evidence.n_alive()))


def _no_model() -> LiveDictionary:
    raise AssertionError("a control has no live dictionary; only scorers that need the store run on it")


def _label(
    evidence: Evidence,
    table: ExplanationTable,
    features: list[int],
    config: InterpretConfig,
    *,
    live_dictionary: Callable[[], LiveDictionary],
    processes: Processes,
    progress: Progress,
) -> Callable[[int], ScoringCase]:
    """Adds the model-free explanations and scores of some features; returns what scorers read of a feature."""
    own_features = features[processes.share(len(features))]
    labels = _explain(evidence, table, own_features, config, processes=processes, progress=progress)
    levels, rules = activation_levels(evidence.store), table.rules()

    def case(feature: int) -> ScoringCase:
        label = labels[feature].label
        others = _null_labels(rules, feature, label, table.seed)
        return ScoringCase(
            evidence,
            feature,
            label=label,
            others=others,
            levels=levels,
            seed=table.seed,
            live_dictionary=live_dictionary,
        )

    own_table = ExplanationTable(table.seed)
    cases = [(case(feature), labels[feature].explanation) for feature in own_features]
    _score(own_table, cases, [name for name in config.scorers_to_run if name in SCORERS], progress)
    for scores, judged in processes.all_gather_objects((own_table.scores, own_table.judged)):
        table.scores += scores
        table.judged += judged

    return case


def _publish(folder: Path, table: ExplanationTable, n_alive: int, floor: float | None) -> None:
    """Writes everything that people download."""
    table.publish(folder / "store", floor)
    write_bytes(folder / "concepts.json", as_json(table.concepts, n_alive).encode())
    parquet.write_concepts(folder / "concepts.parquet", table.concepts)
    with closing(Store(folder / "store")) as published:
        parquet.write_features(folder / "features.parquet", published)


def _explain(
    evidence: Evidence,
    table: ExplanationTable,
    own_features: list[int],
    config: InterpretConfig,
    *,
    processes: Processes,
    progress: Progress,
) -> dict[int, ChosenLabel]:
    """Adds the model-free explanations of all processes; returns the label of every feature."""
    explainers = [EXPLAINERS[name] for name in config.explainers_to_run if name in EXPLAINERS]
    own_table, own_labels = ExplanationTable(table.seed), {}

    for number, feature in enumerate(own_features):
        own_labels[feature] = own_table.add_rules(evidence, feature, explainers)
        if number % SHOW_EVERY == 0:
            progress.update(number, 2 * len(own_features))

    labels: dict[int, ChosenLabel] = {}
    for rows, chosen in processes.all_gather_objects((own_table, own_labels)):
        offset = table.append(rows)
        for feature, (label, key) in chosen.items():
            labels[feature] = ChosenLabel(label, None if key is None else key + offset)

    return labels


def _score(
    table: ExplanationTable, cases: list[tuple[ScoringCase, int | None]], names: list[str], progress: Progress
) -> None:
    for number, (case, key) in enumerate(cases):
        for name in names:
            scorer = SCORERS[name]
            for figure in scorer.score(case):
                table.add_score(name, case.feature, key if scorer.about_label else None, figure)
        if number % SHOW_EVERY == 0:
            progress.update(len(cases) + number, 2 * len(cases))


def _judge(
    table: ExplanationTable, cases: list[ScoringCase], config: InterpretConfig, judge: Judge, *, progress: Progress
) -> JudgeCost:
    """Adds what the judge says of features and concepts; returns what was spent."""
    explainers = [JUDGED_EXPLAINERS[name] for name in config.explainers_to_run if name in JUDGED_EXPLAINERS]
    scorers = [JUDGED_SCORERS[name] for name in config.scorers_to_run if name in JUDGED_SCORERS]
    judge_features(table, cases, explainers, scorers, judge=judge, progress=progress)

    texts = {feature: row.text for feature, row in table.labels.items()}
    by_judge = {feature for feature, row in table.labels.items() if row.explainer in JUDGED_EXPLAINERS}
    table.concepts = named_by(judge, table.concepts, texts, by_judge)

    return JudgeCost(**judge.spent._asdict(), cost=judge.cost)


def _null_labels(rules: list[Label], feature: int, label: Label | None, seed: int) -> tuple[Label, ...]:
    """Labels of other features, drawn at random, without those that say the same: the shuffled null."""
    if not rules:
        return ()
    drawn = dict.fromkeys(np.random.default_rng((seed, feature, 1)).integers(0, len(rules), N_DRAWN).tolist())
    different = (
        rule
        for rule in map(rules.__getitem__, drawn)
        if rule.feature != feature and (label is None or rule.text != label.text)
    )
    return tuple(itertools.islice(different, N_NULL_LABELS))


def _summary(
    table: ExplanationTable,
    n_alive: int,
    cost: JudgeCost | None,
    controls: dict[str, ControlLabels],
    *,
    floor: float | None,
) -> LabelSummary:
    summary = LabelSummary(
        **dict(label_figures(table, n_alive, floor)),
        chance=0.5,
        floor=floor,
        controls={name: control.figures for name, control in controls.items()},
        concepts=sum(concept.parent is None for concept in table.concepts),
        concepts_second_level=sum(concept.parent is not None for concept in table.concepts),
        split=SPLIT_ID,
        seed=table.seed,
    )

    return summary if cost is None else summary.model_copy(update={"judge": cost})
