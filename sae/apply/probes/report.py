"""What `sae probe` writes: how well latents tell classes of texts, where they abstain, and where in the model it can be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from feature_store.results.findings import Figure, Finding, Table
from sae.apply.edit import EditPlan
from sae.apply.finding import figure, table, write_finding
from sae.apply.probes.abstaining import Parts, ProbeResult, parts_of, probed, telling_columns
from sae.apply.probes.answers import Quiz, city_questions, read_questions
from sae.apply.probes.intervention import TRIALS, intervention_table
from sae.apply.probes.places import streams_at_the_end
from sae.apply.probes.statements import cities
from sae.apply.removal import check_removable
from sae.apply.steering.directions import TextEvidence
from sae.apply.text_codes import At, TextReader
from sae.errors import ConfigError, DataError
from sae.foundation.screen import Screen
from sae.text.brought import ClassedTexts, classed_texts

LETTERS, SHOWN = 160, 40
ABSTAINS = "-"


@dataclass(frozen=True)
class ProbeSettings:
    """Texts with classes (a file, or statements about cities), how many latents, and the share of errors allowed.

    With `asks` the texts are the model's own answers to questions: those of the file `questions`, or about cities.
    """

    texts: Path | None = None
    k: int = 16
    at: At = "last"
    alpha: float = 0.1
    positions: int = 3
    most: int = 2000
    seed: int = 0
    asks: bool = False
    questions: Path | None = None

    @property
    def source(self) -> str:
        """The texts in words."""
        if self.asks:
            return f"own answers to {self.questions.name}" if self.questions else "own answers about cities"
        return self.texts.name if self.texts else "statements about cities"

    def check(self) -> None:
        """Raises `ConfigError` for numbers that make no sense."""
        if not 0 < self.alpha < 0.5:
            raise ConfigError(
                f"--alpha {self.alpha:g}: the share of texts whose class may be missed is over 0 and under 0.5."
            )
        if self.asks and self.texts:
            raise ConfigError("--texts and --questions: give one of them.")
        if self.k < 1 or self.positions < 0 or self.most < 1:
            raise ConfigError(
                f"--k {self.k}, --positions {self.positions}, --most {self.most}: wanted are at least 1, 0 and 1."
            )


class _Probed(NamedTuple):
    """All probes by what they read; the latents of the first, and the AUC by layer and position from the end."""

    results: dict[str, ProbeResult]
    latents: np.ndarray
    maxima: np.ndarray
    activations: np.ndarray
    by_place: np.ndarray


def probe_finding(
    folder: Path,
    name: str,
    reader: TextReader,
    settings: ProbeSettings,
    *,
    others: Mapping[str, TextReader],
    screen: Screen,
) -> Finding:
    """Reads the texts, fits and tests probes, and writes the finding `name` of the dictionary.

    `others` read further dictionaries of the same model, by name; a probe reads the latents of each, and one those of all.
    """
    quiz = _quiz(reader, settings) if settings.asks else None
    texts = quiz.claims(quiz.answers(EditPlan(()))) if quiz else _brought(settings)
    classes = sorted(set(texts.labels))
    if len(classes) < 2:
        raise DataError(f"{settings.source}: all texts are {classes[0]!r}; give texts of two or more classes.")
    parts = parts_of(texts.labels, texts.groups, settings.seed)
    labels = np.array([classes.index(label) for label in texts.labels])

    steps = 2 + len(others) + bool(settings.positions) + (TRIALS if quiz else 0)
    with screen.progress("probe", steps, "parts") as progress:
        probes = _all_probes(reader, others, texts, labels, parts=parts, settings=settings, step=progress.step)
        steered: list[Table] = []
        if quiz:
            evidence = TextEvidence(probes.maxima, probes.activations)
            steered = [
                intervention_table(quiz, evidence, parts.fit, parts.test, seed=settings.seed, step=progress.step)
            ]

    ours = probes.results["latents"]
    return write_finding(
        folder, name, system="probe", title=f"What tells {' from '.join(classes)}: {settings.source}",
        summary=_summary(probes.results, settings, len(probes.latents)) + _best_place(reader, probes.by_place),
        settings={"texts": settings.source, "n_texts": len(labels), "k": settings.k, "at": settings.at, "alpha": settings.alpha,
                  "others": ", ".join(others) or None, "seed": settings.seed},
        figures=_figures(ours, probes.results["shuffled labels"], labels, classes),
        tables=[_probe_table(probes.results), *steered, _latent_table(probes, classes, labels, parts),
                *_place_tables(reader, probes.by_place), _text_table(ours, texts, classes, parts)],
    )  # fmt: skip


def _quiz(reader: TextReader, settings: ProbeSettings) -> Quiz:
    check_removable(reader)
    questions = read_questions(settings.questions) if settings.questions else city_questions()
    return Quiz(reader, questions[: settings.most])


def _brought(settings: ProbeSettings) -> ClassedTexts:
    texts = classed_texts(settings.texts) if settings.texts else cities(settings.seed)
    return ClassedTexts(*(column[: settings.most] for column in texts))


def _all_probes(
    reader: TextReader, others: Mapping[str, TextReader], texts: ClassedTexts, labels: np.ndarray, *, parts: Parts,
    settings: ProbeSettings, step: Callable[[], None],
) -> _Probed:  # fmt: skip
    rng = np.random.default_rng(settings.seed)
    maxima = reader.read_every(texts.texts).maxima(settings.at)
    activations = reader.activations(texts.texts, "last" if settings.at == "last" else "mean")
    step()

    fit = parts.fit
    latents = telling_columns(maxima[fit], labels[fit], settings.k)
    live = np.flatnonzero(maxima[fit].max(0) > 0)
    shuffled = labels.copy()
    shuffled[fit] = rng.permutation(labels[fit])
    n_distinct = len({texts.groups[number] for number in parts.test}) * len(set(texts.labels))
    n_distinct = min(n_distinct, len(parts.test))

    def result(x: Any, own_labels: np.ndarray = labels) -> ProbeResult:
        return probed(x, own_labels, parts, alpha=settings.alpha, n_distinct=n_distinct)

    results = {
        "latents": result(maxima[:, latents]),
        "random latents": result(maxima[:, rng.choice(live, min(settings.k, len(live)), replace=False)]),
        "activations": result(activations),
        "words": result(_words(texts.texts, fit)),
        "shuffled labels": result(maxima[:, telling_columns(maxima[fit], shuffled[fit], settings.k)], shuffled),
    }
    step()
    chosen = [maxima[:, latents]]
    for name, other in others.items():
        x = other.read_every(texts.texts).maxima(settings.at)
        chosen.append(x[:, telling_columns(x[fit], labels[fit], settings.k)])
        results[f"latents of {name}"] = result(chosen[-1])
        step()
    if others:
        results["latents of all"] = result(np.concatenate(chosen, axis=1))

    by_place = np.zeros((0, 0))
    if settings.positions:
        streams = streams_at_the_end(reader.lm, texts.texts, ctx_len=reader.ctx_len, n_positions=settings.positions)
        by_place = np.array([[result(x).auc for x in layer] for layer in streams])
        step()
    return _Probed(results, latents, maxima, activations, by_place=by_place)


def _words(texts: list[str], fit: np.ndarray) -> Any:
    """Words and pairs of them, weighted by how rare they are: what a probe can know without the model."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(ngram_range=(1, 2))
    vectoriser.fit([texts[number] for number in fit])
    return vectoriser.transform(texts).tocsr()


def _summary(results: dict[str, ProbeResult], settings: ProbeSettings, n_latents: int) -> str:
    ours = results["latents"]
    return (
        f"{n_latents} latents answer {ours.answered.value:.0%} of the texts held out, {ours.right_of_answered.value:.0%} of "
        f"those rightly, and abstain from the rest; the right class stays possible in {ours.covered.value:.0%} (promised: "
        f"{1 - settings.alpha:.0%}). AUC: latents {ours.auc:.2f}, activations {results['activations'].auc:.2f}, words "
        f"{results['words'].auc:.2f}, random latents {results['random latents'].auc:.2f}."
    )


def _best_place(reader: TextReader, by_place: np.ndarray) -> str:
    if not by_place.size:
        return ""
    layer, back = np.unravel_index(int(by_place.argmax()), by_place.shape)
    token = "the last token" if back == 0 else f"{back} before the last token"
    return (
        f" Activations tell the classes best after layer {sorted(reader.lm.blocks.running)[layer]}, at {token}: AUC "
        f"{by_place.max():.2f}."
    )


def _figures(ours: ProbeResult, null: ProbeResult, labels: np.ndarray, classes: list[str]) -> list[Figure]:
    counts = [
        figure(f"texts, {name}", float((labels == number).sum()), f"texts of class {name}")
        for number, name in enumerate(classes)
    ]
    return [
        *counts,
        figure("answered", ours.answered, "share of the texts held out for which one class is possible"),
        figure("right of answered", ours.right_of_answered, "share of the answers that are right"),
        figure("covered", ours.covered, "share of the texts whose class is among the possible ones"),
        figure("accuracy", ours.accuracy, "share of the texts whose likeliest class is right, if it had to answer all"),
        figure("AUC", ours.auc, "each class against the others, their mean"),
        figure("AUC of shuffled labels", null.auc, "the null: fit to labels dealt out anew"),
    ]


def _probe_table(results: dict[str, ProbeResult]) -> Table:
    names = "answered", "right of answered", "covered", "accuracy", "AUC"
    rows = [
        [name, r.answered.value, r.right_of_answered.value, r.covered.value, r.accuracy.value, r.auc]
        for name, r in results.items()
    ]
    return table("Probes, by what they read", {"probe": "text", **dict.fromkeys(names, "number")}, rows)


def _latent_table(probes: _Probed, classes: list[str], labels: np.ndarray, parts: Parts) -> Table:
    """The mean activation of every chosen latent in the texts of every class, over the texts held out."""
    columns = {"feature": "feature", "speaks for": "text", **dict.fromkeys(classes, "number")}
    rows = []
    for latent in probes.latents:
        act = probes.maxima[parts.test, latent]
        means = [float(act[labels[parts.test] == number].mean()) for number in range(len(classes))]
        rows.append([int(latent), classes[int(np.argmax(means))] if max(means) > 0 else ABSTAINS, *means])
    return table("Features that tell, with their mean activation by class", columns, rows)


def _place_tables(reader: TextReader, by_place: np.ndarray) -> list[Table]:
    if not by_place.size:
        return []
    columns = {"layer": "text", "last token": "number"}
    columns |= {f"{back} before": "number" for back in range(1, by_place.shape[1])}
    rows = [
        [f"layer {layer}", *aucs]
        for layer, aucs in zip(sorted(reader.lm.blocks.running), by_place.tolist(), strict=True)
    ]
    return [table("AUC of a probe on the activations, by layer and token", columns, rows, is_shaded=True)]


def _text_table(ours: ProbeResult, texts: ClassedTexts, classes: list[str], parts: Parts) -> Table:
    """Texts held out: wrong answers first, then abstentions."""
    wrong, unsure = [], []
    for number, answer, possible in zip(parts.test, ours.answers, ours.possible, strict=True):
        label = texts.labels[number]
        told = classes[answer] if answer >= 0 else ABSTAINS
        names = " or ".join(name for name, is_possible in zip(classes, possible, strict=True) if is_possible) or "none"
        if told != label:
            (wrong if answer >= 0 else unsure).append([texts.texts[number][:LETTERS], label, told, names])
    columns = {"text": "text", "class": "text", "answer": "text", "possible": "text"}
    return table("Texts held out that were answered wrongly, or not", columns, [*wrong, *unsure][:SHOWN])
