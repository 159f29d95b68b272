"""How far people agree: Krippendorff's alpha, with an interval."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

Scale = Literal["nominal", "ordinal"]
DRAWS, SEED = 1000, 0


class Said(NamedTuple):
    """One person's value of one thing."""

    thing: object
    person: str
    value: int


class Agreement(NamedTuple):
    """alpha with its 95 % interval; None where fewer than two people spoke of a thing, or all gave one value."""

    alpha: float | None
    low: float | None
    high: float | None
    n_things: int  # of which two people or more spoke
    n_people: int


def agreement(said: Iterable[Said], scale: Scale) -> Agreement:
    """Krippendorff's alpha = 1 - D_o / D_e over all things that two people or more gave a value.

    D_o is the mean squared difference of two values of one thing, D_e that of any two values; the difference of two
    values is 0 or 1 (nominal), or the number of values between them, half of each end counted (ordinal). The interval is
    that of 1,000 bootstrap samples of things, drawn from a fixed seed.

    Source: Krippendorff, Content Analysis, third edition, section 12.3. Differs from it: things are resampled, not pairs.
    """
    by_thing: dict[object, dict[str, int]] = {}
    for thing, person, value in said:
        by_thing.setdefault(thing, {})[person] = value
    shared = [values for values in by_thing.values() if len(values) > 1]
    people = {person for values in shared for person in values}
    kinds = sorted({value for values in shared for value in values.values()})
    counts = np.zeros((len(shared), len(kinds)))
    for row, values in enumerate(shared):
        for value in values.values():
            counts[row, kinds.index(value)] += 1

    alpha = alpha_of(counts, scale)
    drawn = np.random.default_rng(SEED).integers(0, max(len(shared), 1), (DRAWS, len(shared)))
    alphas = [a for rows in drawn if (a := alpha_of(counts[rows], scale)) is not None] if alpha is not None else []
    low, high = np.quantile(alphas, [0.025, 0.975]).tolist() if alphas else (None, None)
    return Agreement(alpha, low, high, len(shared), n_people=len(people))


def alpha_of(
    counts: Float[np.ndarray, "things values"] | Int[np.ndarray, "things values"], scale: Scale
) -> float | None:
    """alpha of how many people gave each thing each value, of things with two values or more; None if all are equal."""
    totals = counts.sum(1)
    if not len(counts):
        return None
    coincidences = (counts.T / (totals - 1)) @ counts - np.diag((counts / (totals - 1)[:, None]).sum(0))
    n_values = coincidences.sum(1)
    expected = (np.outer(n_values, n_values) - np.diag(n_values)) / (n_values.sum() - 1)
    differences = _differences(n_values, scale)
    by_chance = float((expected * differences).sum())
    return None if by_chance == 0 else 1 - float((coincidences * differences).sum()) / by_chance


def _differences(n_values: Float[np.ndarray, " values"], scale: Scale) -> Float[np.ndarray, "values values"]:
    """Squared difference of any two values."""
    if scale == "nominal":
        return 1 - np.eye(len(n_values))
    places = np.cumsum(n_values) - n_values / 2
    return (places[:, None] - places[None, :]) ** 2
