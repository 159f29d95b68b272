"""What `sae steer` writes: how well features, factors and differences of means detect concepts, and steer towards them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from feature_store.results.findings import Figure, Finding
from sae.apply.edit import Sampling
from sae.apply.finding import figure, write_finding
from sae.apply.removal import check_removable
from sae.apply.steering.behaviour import WordJudge
from sae.apply.steering.directions import CONTROL, FEATURE, MEANS, directions_of, evidence_of
from sae.apply.steering.sentences import concept_sentences
from sae.apply.steering.trial import Plain, Trial, example_table, trial_table, tried
from sae.apply.text_codes import TextReader
from sae.errors import ConfigError, DataError
from sae.foundation.screen import Screen
from sae.interpret.intervals import mean
from sae.text.brought import ClassedTexts, classed_texts

FEWEST = 8  # texts of a class, half of which choose the direction


@dataclass(frozen=True)
class SteerSettings:
    """Texts with classes (a file, or sentences of six concepts), the disturbance in nats, and how much is written."""

    texts: Path | None = None
    kl: float = 0.25
    samples: int = 8
    tokens: int = 24
    most: int = 2000
    seed: int = 0

    def check(self) -> None:
        """Raises `ConfigError` for numbers that make no sense."""
        if not self.kl > 0 or self.samples < 1 or self.tokens < 1 or self.most < 1:
            raise ConfigError(
                f"--kl {self.kl:g}, --samples {self.samples}, --tokens {self.tokens}, --most {self.most}: wanted are a "
                "disturbance above 0, and 1 or more of each of the others."
            )


class _Halves(NamedTuple):
    """Texts that choose directions, and texts that test them and that the judge of words learns from."""

    choose: ClassedTexts
    test: ClassedTexts


def steer_finding(folder: Path, name: str, reader: TextReader, settings: SteerSettings, *, screen: Screen) -> Finding:
    """Chooses directions on half of the texts, tests them on the others, steers by them, and writes the finding `name`."""
    check_removable(reader)
    texts = classed_texts(settings.texts) if settings.texts else concept_sentences()
    halves = _halves(ClassedTexts(*(column[: settings.most] for column in texts)), settings.seed)
    concepts = sorted(set(texts.labels))
    rng = np.random.default_rng(settings.seed)

    with screen.progress("steer", 2 + 3 * len(concepts), "directions") as progress:
        evidence = evidence_of(reader, halves.choose.texts)
        progress.step()
        sampling = Sampling(settings.tokens, 1.0, settings.samples, settings.seed)
        plain = Plain(reader, WordJudge(texts.texts, texts.labels), sampling)
        progress.step()
        trials = []
        for concept in concepts:
            chosen_on, tested_on = (np.array([label == concept for label in half.labels]) for half in halves)
            for direction in directions_of(reader, evidence, chosen_on, rng):
                trials.append(tried(plain, concept, direction, halves.test.texts, is_concept=tested_on, kl=settings.kl))
                progress.step()

    source = settings.texts.name if settings.texts else "sentences of six concepts"
    return write_finding(
        folder, name, system="steer", title=f"Detecting and steering: {source}", summary=_summary(trials, settings),
        settings={"texts": source, "concepts": len(concepts), "kl": settings.kl, "samples": settings.samples,
                  "tokens": settings.tokens, "seed": settings.seed},
        figures=_figures(trials, plain, concepts), tables=[trial_table(trials), example_table(plain, trials)],
    )  # fmt: skip


def _halves(texts: ClassedTexts, seed: int) -> _Halves:
    """Groups of texts dealt to both halves; raises `DataError` for one class alone or few texts."""
    names = sorted(set(texts.groups))
    chosen = set(np.random.default_rng(seed).permutation(names)[: len(names) // 2].tolist())
    halves = _Halves(*(
        ClassedTexts(*(list(column) for column in zip(*(row for row in zip(*texts, strict=True) if (row[2] in chosen) == side),
                                                       strict=True)))
        for side in (True, False)
    ))  # fmt: skip
    classes = sorted(set(texts.labels))
    if len(classes) < 2:
        raise DataError(f"all texts are {classes[0]!r}; give texts of two or more classes.")
    for label in classes:
        fewest = min(half.labels.count(label) for half in halves)
        if fewest < FEWEST:
            raise DataError(f"class {label!r} has {fewest} texts in one half; wanted are {FEWEST} in each.")
    return halves


def _by_kind(trials: list[Trial], kind: str, number: Callable[[Trial], float]) -> np.ndarray:
    values = np.array([number(one) for one in trials if one.direction.kind == kind])
    return values[~np.isnan(values)]


def _figures(trials: list[Trial], plain: Plain, concepts: list[str]) -> list[Figure]:
    out = []
    for kind in (FEATURE, MEANS, CONTROL):
        out += [
            figure(f"detects, {kind}", mean(_by_kind(trials, kind, lambda one: one.detection.auc.value)), "AUC of the largest cosine in a text, "
                   "on texts held out; mean over concepts"),
            figure(f"detection score, {kind}", mean(_by_kind(trials, kind, lambda one: one.detection.score)), "log of the mean largest cosine "
                   "in texts of the concept over that in others"),
            figure(f"steers, {kind}", mean(_by_kind(trials, kind, lambda one: one.behaviour.score.value)), "harmonic mean of the "
                   "concept's chance and fluency, mean over concepts"),
        ]  # fmt: skip
    chance = [plain.judge.chances(plain.written.continuations, concept).mean() for concept in concepts]
    out.append(figure("concept, plain", mean(np.array(chance)), "the concept's chance in what the plain model writes"))
    return out


def _summary(trials: list[Trial], settings: SteerSettings) -> str:
    def value(kind: str, number: Callable[[Trial], float]) -> str:
        return f"{_by_kind(trials, kind, number).mean():.2f}"

    def told(number: Callable[[Trial], float]) -> str:
        return ", ".join(f"{kind} {value(kind, number)}" for kind in (FEATURE, MEANS, CONTROL))

    return (
        f"Detection on texts held out (AUC): {told(lambda one: one.detection.auc.value)}. Steering at {settings.kl:g} nats (harmonic mean of "
        f"concept and fluency): {told(lambda one: one.behaviour.score.value)}."
    )
