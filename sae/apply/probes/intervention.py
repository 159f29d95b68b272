"""Whether pushing a model along what tells right from wrong answers makes its answers right more often."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Int

from feature_store.results.findings import Table
from sae.apply.edit import EditPlan
from sae.apply.finding import table
from sae.apply.probes.answers import Quiz
from sae.apply.steering.directions import Direction, TextEvidence, directions_of
from sae.apply.steering.disturbance import Prompts, matched, plan_of
from sae.interpret.intervals import Interval, mean

KL = 0.25  # nats
PROMPTS = 8  # whose disturbance is looked at
RANDOM = "random direction"
TRIALS = 8  # four directions, both ways


def intervention_table(
    quiz: Quiz, evidence: TextEvidence, fit: Int[np.ndarray, " fit"], test: Int[np.ndarray, " test"], *, seed: int,
    step: Callable[[], None] = lambda: None,
) -> Table:  # fmt: skip
    """Directions of the claims in `fit` added and taken away, at equal disturbance; what that does to the answers in `test`.

    `evidence` is of all claims. Beside the best feature and the difference of means (right less wrong) stand a feature that fires as often
    and a random direction.
    """
    plain = quiz.answers(EditPlan(()))
    rng, reader = np.random.default_rng(seed), quiz.reader
    of_fit = TextEvidence(evidence.maxima[fit], evidence.means[fit])
    directions = directions_of(reader, of_fit, plain.is_right[fit], rng)
    random = torch.from_numpy(rng.normal(size=reader.sae.d_out)).to(directions[0].vector)
    directions.append(Direction(RANDOM, None, random))

    distinct = list(dict.fromkeys(quiz.questions[number].prompt for number in test.tolist()))
    prompts = Prompts(reader, distinct[:PROMPTS])
    groups = [quiz.questions[number].group for number in test.tolist()]
    rows: list[list[object]] = [["none", None, None, *_share(plain.is_right[test], groups), None, None, None]]
    for direction in directions:
        for sign, said in ((1, "towards right"), (-1, "towards wrong")):
            length = matched(prompts, sign * direction.vector, KL)
            changed = quiz.answers(plan_of(sign * direction.vector, length.amount), test)
            gain = _share(changed.margin - plain.margin[test], groups)
            rows.append([f"{direction.kind}, {said}", direction.feature, length.disturbance,
                         *_share(changed.is_right, groups), *gain])  # fmt: skip
            step()
    columns = {
        "added": "text", "feature": "feature", "KL": "number", "right answers": "number", "low": "number", "high": "number",
        "change of M": "number", "lowest": "number", "highest": "number",
    }  # fmt: skip
    return table("Answers when what tells right from wrong is added, or taken away", columns, rows)


def _share(values: np.ndarray, groups: list[str]) -> Interval:
    """The mean over groups of the mean in each, so that questions that are alike count once."""
    sums: dict[str, list[float]] = {}
    for value, group in zip(values.tolist(), groups, strict=True):
        sums.setdefault(group, []).append(float(value))
    return mean(np.array([np.mean(part) for part in sums.values()]))
