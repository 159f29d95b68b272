"""What a model writes when it is steered from one set of texts towards the other, by several directions at equal disturbance."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from feature_store.results.findings import Table
from sae.apply.direction import decompose, weighted_direction
from sae.apply.edit import Sampling
from sae.apply.steering.behaviour import WordJudge
from sae.apply.steering.directions import MEANS, Direction, directions_of, evidence_of
from sae.apply.steering.trial import Plain, example_table, trial_table, tried
from sae.apply.text_codes import TextReader

if TYPE_CHECKING:
    from sae.apply.contrast.report import ContrastSettings

KINDS = 5  # directions that are tried
A, B, TOKENS, PARTS = "A", "B", 24, 10


def steering_tables(
    reader: TextReader, texts: tuple[list[str], list[str]], settings: ContrastSettings, *, step: Callable[[], None]
) -> list[Table]:
    """Directions towards A, chosen on half of the texts and tried on the others: the best feature, one that fires as often,
    the difference of means, ten decoder rows in its place, and the texts of A weighted by their loss (EAST). A classifier of
    words, fit on all texts, judges what is written.
    """
    halves = [[part[n::2] for part in texts] for n in (0, 1)]
    chosen, tested = (a + b for a, b in halves)
    is_a = [np.array([True] * len(a) + [False] * len(b)) for a, b in halves]
    judge = WordJudge([*texts[0], *texts[1]], [A] * len(texts[0]) + [B] * len(texts[1]))
    plain = Plain(reader, judge, Sampling(TOKENS, 1.0, settings.samples, settings.seed))

    evidence = evidence_of(reader, chosen)
    directions = directions_of(reader, evidence, is_a[0], np.random.default_rng(settings.seed))
    rows = reader.sae.W_dec.detach().float()
    means = next(direction.vector for direction in directions if direction.kind == MEANS)
    parts = decompose(means.cpu().numpy(), rows.cpu().numpy(), PARTS)
    sparse = torch.tensor(parts.weights, device=rows.device, dtype=rows.dtype) @ rows[parts.features]
    means_of_a = evidence.means[is_a[0]]
    by_loss = weighted_direction(means_of_a, reader.losses(halves[0][0]))
    directions += [
        Direction(f"{len(parts.features)} features of it", None, sparse),
        Direction("A weighted by loss", None, torch.from_numpy(by_loss).to(rows)),
    ]
    trials = []
    for direction in directions:
        trials.append(tried(plain, A, direction, tested, is_concept=is_a[1], kl=settings.kl))
        step()
    return [trial_table(trials), example_table(plain, trials)]
