"""Runs measures on a dictionary and writes their figures: metrics.json, pictures, and a report to read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from feature_store.dictionary_files import Metrics
from sae.architectures import SparseAutoencoder
from sae.evaluation.measure import Measure
from sae.evaluation.measures import MEASURES
from sae.evaluation.report import write_report
from sae.evaluation.subject import Subject
from sae.foundation.screen import Progress
from sae.foundation.section import Count, Section
from sae.publish.controls import CONTROLS, control_of, l0_of
from sae.stream.activations import Activations


def known_measures(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, if each is a measure; otherwise raises `ValueError` with the measures that exist."""
    unknown_measures = [name for name in names if name not in MEASURES]
    if unknown_measures:
        raise ValueError(f"no measure {unknown_measures[0]!r}; allowed measures are {', '.join(MEASURES)}")
    return names


def evaluate_on_text(subject: Subject, name: str, title: str) -> dict[str, Any]:
    """The main figures on another text than the dictionary's own; kept in metrics.json and the report under its name."""
    figures: dict[str, Any] = {"tokens": subject.held_out.contexts.n_contexts * subject.held_out.contexts.ctx_len}
    for measure in MEASURES.values():
        if measure.control_figures and measure.applies(subject):
            measured = measure.measure(subject)
            figures |= {key: measured[key] for key in measure.control_figures}

    metrics = Metrics.read(subject.folder).with_text(name, figures)
    metrics.write(subject.folder)
    write_report(metrics.as_json(), title, subject.folder)

    return figures


CONTROL_TOKENS = 2048  # that the splice of a control is measured on


def _controls_of(subject: Subject) -> dict[str, Subject]:
    """Subjects of dictionaries that learned nothing, on the same stream, by the name of the control."""
    training, k = subject.held_out.training or subject.held_out, l0_of(subject.sae, subject.folder)
    samples = {name: control_of(subject.sae, name, training, k, seed=subject.seed) for name in CONTROLS}
    splice_tokens = min(subject.splice_tokens, CONTROL_TOKENS)
    return {name: replace(subject, sae=s.control, splice_tokens=splice_tokens) for name, s in samples.items()}


def _of_controls(controls: dict[str, Subject], measure: Measure) -> dict[str, dict[str, Any]]:
    """A measure's figures for every control."""
    measured = {name: measure.measure(control) for name, control in controls.items()}
    return {name: {key: figures[key] for key in measure.control_figures} for name, figures in measured.items()}


DEFAULT = tuple(name for name, measure in MEASURES.items() if measure.by_default)


class EvaluateConfig(Section):
    """What is measured at the end of a run, and how much of the held-out stream it uses."""

    measures: Annotated[tuple[str, ...], AfterValidator(known_measures)] = Field(
        default=DEFAULT, description="Measures to run; `sae eval` runs others later."
    )
    splice_tokens: Count = Field(
        default=8_192, ge=2, description="Tokens for CE and KL with the reconstruction spliced in."
    )
    batch_contexts: Count = Field(default=16, ge=1, description="Contexts per forward pass.")


def subject_of(
    sae: SparseAutoencoder,
    held_out: Activations,
    config: EvaluateConfig,
    *,
    folder: Path,
    seed: int,
    progress: Progress,
    against: tuple[SparseAutoencoder, ...] = (),
) -> Subject:
    """What the measures of a dictionary read, by the settings of a run."""
    return Subject(
        sae=sae,
        held_out=held_out,
        folder=folder,
        splice_tokens=config.splice_tokens,
        batch_contexts=config.batch_contexts,
        seed=seed,
        progress=progress,
        against=against,
    )


def evaluate(subject: Subject, names: tuple[str, ...], title: str) -> Metrics:
    """Runs the named measures; returns all metrics of the dictionary, earlier ones included.

    metrics.json is written after every measure, so a stopped evaluation keeps what was finished.
    """
    folder = subject.folder
    metrics = Metrics.read(folder) if (folder / Metrics.file_name).exists() else Metrics()

    controls: dict[str, Subject] = {}  # made once, when a measure first asks for them
    for name in names:
        measure = MEASURES[name]
        if not measure.applies(subject):
            subject.progress.say(f"{name}: skipped, it works only {measure.applies.__doc__}")
            continue
        figures = measure.measure(subject)
        metrics = metrics.with_figures(name, figures)
        if measure.control_figures and subject.sae.centred:
            metrics.write(folder)  # the controls keep as many latents as it says
            controls = controls or _controls_of(subject)
            metrics = metrics.with_controls(_of_controls(controls, measure))
        measure.draw(figures, title, folder)
        metrics.write(folder)

    write_report(metrics.as_json(), title, folder)
    return metrics
