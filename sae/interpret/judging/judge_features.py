"""Explanations and scores that a judge gives, and whether its text replaces the rule as the label.

A few features are done at a time, so that a stop loses little.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from sae.foundation.screen import Progress
from sae.interpret.explanation_table import ExplanationTable
from sae.interpret.judging.judge import Answer, Judge, Prompt, Spent
from sae.interpret.judging.judged_explainer import JudgedExplainer
from sae.interpret.judging.judged_scorer import JudgedScorer, Trial
from sae.interpret.scorer import ScoringCase

FEATURES_AT_ONCE = 64


class JudgedText(NamedTuple):
    """A text to score: the feature's case, the id of its explanation, and the text; or a case alone."""

    case: ScoringCase
    explanation: int | None = None
    text: str = ""


def judge_features(
    table: ExplanationTable,
    cases: list[ScoringCase],
    explainers: list[JudgedExplainer],
    scorers: list[JudgedScorer],
    *,
    judge: Judge,
    progress: Progress,
) -> None:
    """Adds the judge's explanations of all cases, and its scores of these and of what people said.

    What a person said, else the first explainer's text, becomes the label if detection finds it better than chance and not worse than the best
    rule on the same windows, both at 95 %. Its score is then the detection's, which is optimistic: the same windows
    decided whether the text was accepted. Otherwise the best rule stays the label.
    """
    for first in range(0, len(cases), FEATURES_AT_ONCE):
        part = cases[first : first + FEATURES_AT_ONCE]
        judge_progress = _JudgeProgress(first, len(cases), judge, progress)
        texts = _said(table, part) + _explain(table, part, explainers, judge, shown=judge_progress)
        for scorer in scorers:
            scored = texts if scorer.about_label else [JudgedText(case) for case in part]
            _score(table, scorer, scored, judge, shown=judge_progress)

    progress.update(len(cases), len(cases))


def _said(table: ExplanationTable, cases: list[ScoringCase]) -> list[JudgedText]:
    by_feature = {case.feature: case for case in cases}
    return [JudgedText(by_feature[row.feature], row.id, row.text) for row in table.said(set(by_feature))]


class _JudgeProgress:
    """Shows what was asked and paid for beside the progress."""

    def __init__(self, done: int, total: int, judge: Judge, progress: Progress):
        self.done, self.total, self.judge, self.progress = done, total, judge, progress

    def __call__(self, n_prompts: int, spent: Spent) -> None:
        cost = {} if self.judge.cost is None else {"cost": self.judge.cost}
        self.progress.update(
            self.done,
            self.total,
            asked=spent.asked,
            cached=spent.cached,
            failed=spent.failed,
            tokens_read=spent.prompt_tokens,
            tokens_written=spent.answer_tokens,
            **cost,
        )


def _explain(
    table: ExplanationTable,
    cases: list[ScoringCase],
    explainers: list[JudgedExplainer],
    judge: Judge,
    *,
    shown: _JudgeProgress,
) -> list[JudgedText]:
    texts = []
    for explainer in explainers:
        prompts = [(case, p) for case in cases if (p := explainer.prompt(case.evidence, case.feature)) is not None]
        answers = judge.ask([prompt for _, prompt in prompts], shown)
        for (case, _), answer in zip(prompts, answers, strict=True):
            text = explainer.text(answer.value)
            if text is not None:
                key = table.add_text(case.feature, explainer.name, text, None)
                texts.append(JudgedText(case, key, text))

    return texts


def _score(
    table: ExplanationTable, scorer: JudgedScorer, texts: list[JudgedText], judge: Judge, *, shown: _JudgeProgress
) -> None:
    trials: list[list[Trial]] = [scorer.trials(case, text) for case, _, text in texts]
    prompts: list[Prompt] = [trial.prompt for part in trials for trial in part]
    answers = iter(judge.ask(prompts, shown))
    decided: set[int] = set()

    for (case, key, _), part in zip(texts, trials, strict=True):
        own_answers: list[Answer] = [next(answers) for _ in part]
        digest = hashlib.sha256(part[0].prompt.system.encode()).hexdigest()[:16] if part else None
        for figure in scorer.score(part, own_answers):
            table.add_score(scorer.name, case.feature, key, figure, judge=judge.config.model, prompt=digest)
            if scorer.decides_label and key is not None and case.feature not in decided:
                decided.add(case.feature)
                if figure.interval.low > figure.chance and not figure.interval.high < figure.baseline:
                    table.choose(key, figure)
