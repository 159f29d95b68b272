"""One direction tried for a concept: how well it detects it, how long it must be, and what the model then writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from feature_store.results.findings import Table
from sae.apply.direction import parts_at
from sae.apply.edit import EditPlan, Sampling
from sae.apply.finding import table
from sae.apply.steering.behaviour import PROMPTS, Behaviour, WordJudge, Written, judged, written
from sae.apply.steering.directions import Direction
from sae.apply.steering.disturbance import Matched, Prompts, matched, plan_of
from sae.apply.text_codes import TextReader
from sae.interpret.intervals import Interval, auc

LEAST = 0.5  # of the whole disturbance; a direction whose row-space part does less is flagged
LETTERS = 200  # of an example


class Plain:
    """What the model does after the prompts without an edit, and who judges what is written."""

    def __init__(self, reader: TextReader, judge: WordJudge, sampling: Sampling):
        self.reader, self.judge, self.sampling = reader, judge, sampling
        self.prompts = Prompts(reader, PROMPTS)
        self.written: Written = written(reader, PROMPTS, EditPlan(()), sampling)


class Detection(NamedTuple):
    """The AUC of the largest cosine in a text, and the paper's score: the log of its mean in texts of the concept over others.

    The score is NaN where one of both means is not positive.
    """

    auc: Interval
    score: float


class CausalAudit(NamedTuple):
    """Which part of a direction can do anything: the share of its squared norm in the null space of the output weights, and the
    disturbance by its part in their row space and by that in the null space alone, in nats.
    """

    null_share: float
    row_kl: float
    null_kl: float


class Trial(NamedTuple):
    """A direction tried for a concept; it is audited at an MLP's hidden layer and at the heads' outputs."""

    concept: str
    direction: Direction
    detection: Detection
    length: Matched
    behaviour: Behaviour
    audit: CausalAudit | None


def detection_of(
    reader: TextReader, direction: Direction, texts: list[str], is_concept: Bool[np.ndarray, " texts"]
) -> Detection:
    """How well the largest cosine of a direction with the activations of a text tells texts of a concept."""
    cosines = reader.largest_cosines(texts, direction.vector[None])[:, 0]
    inside, outside = (float(cosines[side].mean()) for side in (is_concept, ~is_concept))
    score = float(np.log(inside / outside)) if min(inside, outside) > 0 else float("nan")
    return Detection(auc(cosines[is_concept], cosines[~is_concept]), score)


def tried(
    plain: Plain,
    concept: str,
    direction: Direction,
    texts: list[str],
    *,
    is_concept: Bool[np.ndarray, " texts"],
    kl: float,
) -> Trial:
    """Detects in some texts, and steers by the direction at a disturbance of `kl` nats."""
    reader = plain.reader
    length = matched(plain.prompts, direction.vector, kl)
    steered = written(reader, PROMPTS, plan_of(direction.vector, length.amount), plain.sampling)
    behaviour = judged(steered, plain.written, plain.judge, concept)
    detection = detection_of(reader, direction, texts, is_concept)
    audit = _audited(plain.prompts, direction, length)
    return Trial(concept, direction, detection, length, behaviour=behaviour, audit=audit)


def _audited(prompts: Prompts, direction: Direction, length: Matched) -> CausalAudit | None:
    parts = parts_at(prompts.reader, direction.vector)
    if parts is None:
        return None
    share = float(parts.null_share)
    row, null = (
        prompts.disturbance(plan_of(part[0], length.amount * max(size, 0.0) ** 0.5))
        for part, size in ((parts.row, 1 - share), (parts.null, share))
    )
    return CausalAudit(share, row, null)


def trial_table(trials: Sequence[Trial]) -> Table:
    """A row per trial; at an MLP's hidden layer and at heads' outputs also which part of the direction does anything."""
    columns = {
        "concept": "text", "direction": "text", "feature": "feature", "AUC": "number", "detection score": "number",
        "KL": "number", "length": "number", "concept's chance": "number", "fluency": "number", "score": "number",
        "low": "number", "high": "number",
    }  # fmt: skip
    rows: list[list[object]] = []
    for one in trials:
        behaviour = one.behaviour
        rows.append([
            one.concept, one.direction.kind, one.direction.feature, one.detection.auc.value, one.detection.score,
            one.length.disturbance, one.length.amount, behaviour.concept.value, behaviour.fluency.value, *behaviour.score,
        ])  # fmt: skip
    if any(one.audit for one in trials):
        columns |= dict.fromkeys(("in the null space", "KL of the rest", "KL of what is there"), "number") | {
            "flag": "text"
        }
        rows = [[*row, *_said(one)] for row, one in zip(rows, trials, strict=True)]
    return table("Directions at equal disturbance", columns, rows)


def _said(trial: Trial) -> list[object]:
    """The audit's columns: a direction most of whose effect is not that of its row-space part is flagged."""
    audit = trial.audit
    if audit is None:
        return [None] * 4
    flagged = audit.row_kl < LEAST * trial.length.disturbance
    return [*audit, "illusion" if flagged else ""]


def example_table(plain: Plain, trials: Sequence[Trial]) -> Table:
    """The first text that the model wrote, plainly and by every direction."""
    rows: list[list[object]] = [["", "plain", plain.written.texts[0][:LETTERS]]]
    rows += [list[object]((one.concept, one.direction.kind, one.behaviour.example[:LETTERS])) for one in trials]
    return table("The first text that each wrote", {"concept": "text", "direction": "text", "text": "text"}, rows)
