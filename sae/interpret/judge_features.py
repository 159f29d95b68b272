"""Explanations and scores that a judge gives, a few features at a time, so that a stop loses little."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from sae.interpret.explainers import JudgedExplainer
from sae.interpret.generation import Generation
from sae.interpret.judge import Answer, Judge, Prompt, Spent
from sae.interpret.scorers import Case, JudgedScorer, Trial

FEATURES_AT_ONCE = 64


def judge_features(
    generation: Generation,
    cases: list[Case],
    explainers: list[JudgedExplainer],
    scorers: list[JudgedScorer],
    judge: Judge,
    report: Callable[..., None],
) -> None:
    """Adds the judge's explanations of all cases and its scores.

    The first explainer's text becomes the label where detection finds it better than chance, and not worse than the best
    rule on the same windows, both at 95 %; its score is then the detection's, chosen on the windows that it is of and so a
    little too good. Else the best rule stays the label.
    """
    for first in range(0, len(cases), FEATURES_AT_ONCE):
        part = cases[first : first + FEATURES_AT_ONCE]
        told = _Told(first, len(cases), judge, report)
        texts = _explained(generation, part, explainers, judge, told)
        for scorer in scorers:
            whole: list[tuple[Case, int | None, str]] = [(case, None, "") for case in part]
            asked = texts if scorer.about_label else whole
            _scored(generation, scorer, asked, judge, told)
    report(len(cases), len(cases))


class _Told:
    """Progress with what was asked and paid for."""

    def __init__(self, done: int, total: int, judge: Judge, report: Callable[..., None]):
        self.done, self.total, self.judge, self.report = done, total, judge, report

    def __call__(self, prompts: int, spent: Spent) -> None:
        self.report(
            self.done, self.total, asked=spent.asked, cached=spent.cached, failed=spent.failed,
            tokens_read=spent.prompt_tokens, tokens_written=spent.answer_tokens,
            **({} if self.judge.cost is None else {"cost": self.judge.cost}),
        )  # fmt: skip


def _explained(
    generation: Generation, cases: list[Case], explainers: list[JudgedExplainer], judge: Judge, told: _Told
) -> list[tuple[Case, int | None, str]]:
    found: list[tuple[Case, int | None, str]] = []
    for explainer in explainers:
        asked = [(case, p) for case in cases if (p := explainer.prompt(case.evidence, case.feature)) is not None]
        answers = judge.ask([prompt for _, prompt in asked], told)
        for (case, _), answer in zip(asked, answers, strict=True):
            text = explainer.text(answer.value)
            if text is None:
                continue
            key = generation.add_text(case.feature, explainer.name, text, None)
            found.append((case, key, text))
    return found


def _scored(
    generation: Generation, scorer: JudgedScorer, asked: list[tuple[Case, int | None, str]], judge: Judge, told: _Told
) -> None:
    trials: list[list[Trial]] = [scorer.trials(case, text) for case, _, text in asked]
    prompts: list[Prompt] = [trial.prompt for part in trials for trial in part]
    answers = iter(judge.ask(prompts, told))
    chosen: set[int] = set()
    for (case, key, _), part in zip(asked, trials, strict=True):
        given: list[Answer] = [next(answers) for _ in part]
        digest = hashlib.sha256(part[0].prompt.system.encode()).hexdigest()[:16] if part else None
        for found in scorer.score(part, given):
            generation.add_score(scorer.name, case.feature, key, found, judge.config.model, digest)
            if scorer.name == "detection" and key is not None and case.feature not in chosen:
                chosen.add(case.feature)
                if found.interval.low > found.chance and not found.interval.high < found.baseline:
                    generation.choose(key, found.interval.value)
