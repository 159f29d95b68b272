"""What a scorer with a judge is, and how its yes and no become a balanced accuracy that failures cannot flatter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from sae.interpret.events import Event
from sae.interpret.intervals import NOTHING, Interval, auc, balanced_accuracy, proportion
from sae.interpret.judging.judge import Answer, Prompt
from sae.interpret.judging.prompts import as_data, schema, shown
from sae.interpret.scorer import Figure, Label, ScoringCase, judged_window

TEXTS_PER_PROMPT = 5
POSITIVES, NEGATIVES = 20, 20
MOST_FAILED = 0.1


class Trial(NamedTuple):
    """One prompt, the truth about each of its texts, and the lexical baseline's answer for each."""

    prompt: Prompt
    truth: list[Any]
    baseline: list[Any]
    events: tuple[Event, ...] = ()  # the windows, where one answer is about one window


class JudgedScorer(ABC):
    """Figures about a text (`about_label`) or about a feature, from a judge's answers on the test documents only."""

    name: ClassVar[str]
    about_label: ClassVar[bool] = True
    by_default: ClassVar[bool] = False  # whether it runs with a judge unless scorers are named
    decides_label: ClassVar[bool] = False  # whether its figure decides if a judge's text becomes the label

    @abstractmethod
    def trials(self, case: ScoringCase, text: str) -> list[Trial]:
        """The prompts; an empty list if there is nothing to test on."""

    @abstractmethod
    def score(self, trials: list[Trial], answers: list[Answer]) -> list[Figure]:
        """The figures."""


class Item(NamedTuple):
    """A window to judge, the places that are marked in it (None: no marks), and whether the feature fires there."""

    event: Event
    marks: set[int] | None
    truth: bool


class YesNoScorer(JudgedScorer):
    """Balanced accuracy of a judge's yes or no to a description of windows, five per prompt, in random order."""

    system: ClassVar[str]

    @abstractmethod
    def items(self, case: ScoringCase) -> list[Item]:
        """The windows of both classes."""

    def trials(self, case: ScoringCase, text: str) -> list[Trial]:
        """One prompt per five windows; an empty list if a class is empty."""
        items = self.items(case)
        if len({item.truth for item in items}) < 2:
            return []

        trials = []
        for part in shuffled(case, items):
            data = as_data(description=text, texts=[shown(case.evidence, i.event, i.marks or set()) for i in part])
            answer = schema(
                matches={"type": "array", "items": {"type": "boolean"}, "minItems": len(part), "maxItems": len(part)}
            )
            lexical = [matches_anywhere(case, case.label, i.event, i.marks) for i in part]
            events = () if any(i.marks for i in part) else tuple(i.event for i in part)
            trials.append(Trial(Prompt(self.system, data, answer), [i.truth for i in part], lexical, events))

        return trials

    def score(self, trials: list[Trial], answers: list[Answer]) -> list[Figure]:
        """balanced_accuracy, and auc if the judge tells its probabilities; both have chance 0.5."""
        yes_no_answers = [flags(a.value, "matches", len(t.truth)) for t, a in zip(trials, answers, strict=True)]
        if not trials:
            return []
        return [
            classified(trials, yes_no_answers),
            *ranked(trials, yes_no_answers, [a.yes_probabilities for a in answers]),
        ]


def copied_marks(pattern: set[int], event: Event) -> set[int]:
    """Another window's marks as far as they fall inside this one; its last token if none does."""
    return {p for p in pattern if p < len(event.ids)} or {len(event.ids) - 1}


def held_out_windows(case: ScoringCase) -> tuple[list[Event], list[Event]]:
    """(activating windows of all strata, silent ones: half of the nearest features, half random) of the test part."""
    events = case.evidence.events
    positive = case.drawn(case.part(events.activating(case.feature), True), POSITIVES)
    hard = case.drawn(case.part(events.hard_negatives(case.feature), True), NEGATIVES // 2)
    random = case.drawn(case.part(events.random_silent(case.feature), True), NEGATIVES - len(hard))
    return positive, hard + random


def shuffled(case: ScoringCase, items: list[Any]) -> list[list[Any]]:
    """The items in an order of the seed's, `TEXTS_PER_PROMPT` at a time."""
    order = case.generator().permutation(len(items)).tolist()
    mixed = [items[i] for i in order]
    return [mixed[i : i + TEXTS_PER_PROMPT] for i in range(0, len(mixed), TEXTS_PER_PROMPT)]


def matches_anywhere(
    case: ScoringCase, label: Label | None, event: Event, places: set[int] | None = None
) -> bool | None:
    """Whether a label's rule matches some token of a window, or one of these places; None without a label."""
    if label is None:
        return None
    at = range(len(event.ids)) if places is None else places
    moved = (
        Event(
            event.ids,
            p,
            event.place + p - event.peak,
            event.document,
            is_test=event.is_test,
            act=0.0,
            acts=(),
            group="",
            inclusion=1.0,
        )
        for p in at
    )
    return any(label.matches(case.evidence, e) for e in moved)


def flags(value: Any, key: str, n: int) -> list[bool] | None:
    """The n yes or no under a key of an answer, or None if the answer has another form."""
    answers = value.get(key) if isinstance(value, dict) else None
    if (
        not isinstance(answers, list)
        or len(answers) != n
        or not all(isinstance(x, bool) or x in (0, 1) for x in answers)
    ):
        return None
    return [bool(x) for x in answers]


def classified(trials: list[Trial], said: list[list[bool] | None]) -> Figure:
    """Balanced accuracy of yes and no; an unreadable answer is wrong, and more than a tenth of them voids the score."""
    right = np.zeros((2, 2), int)  # [truth, right]
    lexical = np.zeros((2, 2), int)
    failed = 0

    for trial, answer in zip(trials, said, strict=True):
        failed += len(trial.truth) if answer is None else 0
        for place, truth in enumerate(trial.truth):
            right[int(truth), int(answer is not None and answer[place] == truth)] += 1
            if trial.baseline[place] is not None:
                lexical[int(truth), int(trial.baseline[place] == truth)] += 1

    n_neg, n_pos = right.sum(1).tolist()
    void = failed > MOST_FAILED * (n_pos + n_neg) or not n_pos or not n_neg
    value = NOTHING if void else _balanced(right)

    windows = tuple(
        judged_window(event, fires, None if answer is None else answer[place])
        for trial, answer in zip(trials, said, strict=True)
        for place, (event, fires) in enumerate(zip(trial.events, trial.truth, strict=False))
    )
    return Figure(
        "balanced_accuracy",
        value,
        0.5,
        n_pos,
        n_neg=n_neg,
        n_failed=failed,
        baseline=_balanced(lexical).value,
        windows=windows,
    )


def ranked(
    trials: list[Trial], said: list[list[bool] | None], yes_probabilities: list[list[float] | None]
) -> list[Figure]:
    """AUC of the probabilities of yes; nothing if a readable answer came without them.

    An unreadable answer counts as certain of the wrong class. More than a tenth of unreadable answers voids the figure.
    """
    sides: tuple[list[float], list[float]] = ([], [])
    failed = 0

    for trial, answer, chance in zip(trials, said, yes_probabilities, strict=True):
        if answer is not None and (chance is None or len(chance) != len(answer)):
            return []
        failed += len(trial.truth) if answer is None else 0
        for place, truth in enumerate(trial.truth):
            sides[truth].append(float(not truth) if answer is None or chance is None else chance[place])

    negative, positive = map(np.array, sides)
    void = failed > MOST_FAILED * (len(positive) + len(negative))
    value = NOTHING if void else auc(positive, negative)

    return [Figure("auc", value, 0.5, len(positive), n_neg=len(negative), n_failed=failed)]


def _balanced(right: np.ndarray) -> Interval:
    positive, negative = (proportion(int(right[t, 1]), int(right[t].sum())) for t in (1, 0))
    return balanced_accuracy(positive, negative)
