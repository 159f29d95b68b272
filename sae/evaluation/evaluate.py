"""Runs measures on a dictionary and keeps what they found: metrics.json, pictures, and a report to read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from sae.architectures import SparseAutoencoder
from sae.evaluation.measures import MEASURES
from sae.evaluation.report import write_report
from sae.evaluation.subject import Subject
from sae.foundation.files import write_json
from sae.foundation.section import Count, Section
from sae.stream.activations import Activations


def known_measures(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, if each is a measure; raises `ValueError` with those that are."""
    wrong = [name for name in names if name not in MEASURES]
    if wrong:
        raise ValueError(f"no measure {wrong[0]!r}; allowed measures are {', '.join(MEASURES)}")
    return names


DEFAULT = tuple(name for name, measure in MEASURES.items() if measure.by_default)


class EvaluateConfig(Section):
    """What is measured at the end of a run and how much of the held-out stream is used for it."""

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
    folder: Path,
    seed: int,
    report: Callable[[int, int], None],
    against: tuple[SparseAutoencoder, ...] = (),
) -> Subject:
    """What the measures of a dictionary are given, by the settings of a run."""
    return Subject(sae, held_out, folder, config.splice_tokens, config.batch_contexts, seed, report, against)


def evaluate(subject: Subject, names: tuple[str, ...], title: str, say: Any = lambda name: None) -> dict[str, Any]:
    """All metrics of one dictionary: what earlier measures found, and the named ones anew, measure by measure.

    metrics.json is written after every measure, so a stopped evaluation keeps what was finished.
    """
    path = subject.folder / "metrics.json"
    metrics: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        measure = MEASURES[name]
        if not measure.applies(subject):
            say(f"{name}: says nothing about this dictionary ({measure.applies.__doc__})")
            continue
        found = measure.measure(subject)
        metrics |= found | {"measured": sorted({*metrics.get("measured", []), name})}
        measure.draw(found, title, subject.folder)
        write_json(path, metrics)
    write_report(metrics, title, subject.folder)
    return metrics
