"""What a latent of a recommender stands for, in categories and title words of the items that it recommends; with honest scores.

The protocol of RecSAE (Wang et al. 2024, arXiv 2411.06112): a latent's strongest samples are halved; one half chooses the
concept, the other is tested beside samples in which the latent does not fire. confidence = (tested samples that have the
concept + random ones that do not) / all. Levels are deciles of all activations of all latents together, and only samples
from level 5 on are strong. We differ: no language model writes or judges (a sample has the concept or not), there are 20
samples of a kind instead of 5, and other latents' concepts on the same samples are the null.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sae.apply.recommender.interactions import Item

SAMPLES, LEAST = 20, 5  # tested of a kind; strong samples that a latent must have of each half
LEVEL, LEVELS = 5, 10
LEAST_ITEMS, SHORTEST = 5, 4  # items that must have a word or category; letters of a word
NULLS = 19
COHERENT = 5  # items of a latent whose likeness is looked at
BACKGROUND = 400  # samples without the latent that the choice of a concept looks at


class Concepts(NamedTuple):
    """Names of concepts, and which items have which, [items, concepts]."""

    names: list[str]
    has: Bool[np.ndarray, "items concepts"]


class Firings(NamedTuple):
    """Samples in which latents fire: a row per firing, and the item that the model recommends in every sample."""

    sample: Int[np.ndarray, " firings"]
    latent: Int[np.ndarray, " firings"]
    act: Float[np.ndarray, " firings"]
    recommended: Int[np.ndarray, " samples"]


class ItemConcept(NamedTuple):
    """A latent's concept (its number), its confidence, that of other latents' concepts on the same samples, and halves of it.

    `n_tested` samples of each kind are tested. `recall` is the share of tested samples that have the concept; `silence` that of random ones that do not (the paper calls
    it precision). `samples` are its strong samples, of which `chosen_on` chose the concept and `tested_on` tested it beside `silent`.
    """

    latent: int
    concept: int
    confidence: float
    null: float
    beats_null: bool
    recall: float
    silence: float
    n_tested: int
    samples: Int[np.ndarray, " samples"]
    chosen_on: Int[np.ndarray, " chosen"]
    tested_on: Int[np.ndarray, " tested"]
    silent: Int[np.ndarray, " tested"]


def concepts_of(items: list[Item]) -> Concepts:
    """Categories, and words of titles, that at least five items and at most half of them have."""
    members: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        words = {word.lower() for word in re.findall(r"[^\W\d_]+", item.title) if len(word) >= SHORTEST}
        years = {f"{year[:3]}0s" for year in re.findall(r"\((\d{4})\)$", item.title)}
        for name in {*item.categories, *years, *(f"“{word}” in the title" for word in words)}:
            members.setdefault(name, []).append(number)
    names = sorted(name for name, held in members.items() if LEAST_ITEMS <= len(held) <= len(items) / 2)
    has = np.zeros((len(items), len(names)), bool)
    for column, name in enumerate(names):
        has[members[name], column] = True
    return Concepts(names, has)


def strong_from(acts: Float[np.ndarray, " firings"]) -> float:
    """The activation from which on a firing is of level 5 or more: levels are deciles of all activations together."""
    return float(np.quantile(acts, (LEVEL - 1) / LEVELS)) if len(acts) else 0.0


def item_concepts(firings: Firings, concepts: Concepts, seed: int = 0) -> list[ItemConcept]:
    """The concept of every latent with enough strong samples, in the order of latents."""
    rng = np.random.default_rng(seed)
    least = strong_from(firings.act)
    has = concepts.has[firings.recommended]  # of samples
    order = np.lexsort((firings.sample, -firings.act, firings.latent))
    latents, starts = np.unique(firings.latent[order], return_index=True)
    ends = np.append(starts[1:], len(order))
    halves = []

    for latent, start, end in zip(latents.tolist(), starts, ends, strict=True):
        rows = order[start:end]
        strong = firings.sample[rows[firings.act[rows] >= least]]
        if len(strong) < 2 * LEAST:
            continue
        picked = rng.permutation(strong[: 2 * SAMPLES])
        half = len(picked) // 2
        silent = _without(firings.sample[rows], len(firings.recommended), rng, BACKGROUND + half)
        chosen = _best(has[picked[half:]], has[silent[half:]])
        halves.append(
            (latent, chosen, picked[:half], silent[:half], strong, picked[half:])
        )  # as many of a kind: never or always is 0.5

    all_chosen = np.array([chosen for _, chosen, *_ in halves])
    out = []
    for latent, chosen, tested, silent, strong, chosen_on in halves:
        recall, silence = float(has[tested, chosen].mean()), float(1 - has[silent, chosen].mean())
        confidence = _confidence(has, tested, silent, np.array([chosen]))[0]
        others = all_chosen[all_chosen != chosen]
        null = _confidence(has, tested, silent, rng.choice(others, NULLS)) if len(others) else np.full(NULLS, np.nan)
        out.append(
            ItemConcept(
                latent, chosen, float(confidence), float(null.mean()), beats_null=bool((null < confidence).all()),
                recall=recall, silence=silence, n_tested=len(tested), samples=strong,
                chosen_on=chosen_on, tested_on=tested, silent=silent,
            )
        )  # fmt: skip
    return out


def _without(samples: np.ndarray, n: int, rng: np.random.Generator, count: int) -> np.ndarray:
    """Samples, drawn at random, in which the latent does not fire."""
    fires = np.zeros(n, bool)
    fires[samples] = True
    free = np.flatnonzero(~fires)
    return rng.permutation(free)[:count]


def _best(positive: np.ndarray, negative: np.ndarray) -> int:
    """The concept that tells the samples apart best: balanced accuracy, of equal ones the first."""
    return int((positive.mean(0) + 1 - negative.mean(0)).argmax())


def _confidence(has: np.ndarray, tested: np.ndarray, silent: np.ndarray, concepts: np.ndarray) -> np.ndarray:
    """Confidence of each of some concepts on the same samples."""
    right = has[tested][:, concepts].sum(0) + (~has[silent][:, concepts]).sum(0)
    return right / (len(tested) + len(silent))


def coherences(
    firings: Firings, vectors: Float[np.ndarray, "items width"], latents: Int[np.ndarray, " latents"]
) -> Float[np.ndarray, " latents"]:
    """How alike the five strongest distinct items of some latents are: the mean cosine of their vectors, pair by pair.

    RecSAE's coherence, over items instead of the vectors of two samples; NaN for a latent of one item.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    order = np.lexsort((firings.sample, -firings.act, firings.latent))
    bounds = np.searchsorted(firings.latent[order], [latents, latents + 1])
    out = np.full(len(latents), np.nan)
    for number, (start, end) in enumerate(bounds.T):
        items = firings.recommended[firings.sample[order[start:end]]]
        distinct = list(dict.fromkeys(items.tolist()))[:COHERENT]
        n = len(distinct)
        if n > 1:
            cosines = unit[distinct] @ unit[distinct].T
            out[number] = (cosines.sum() - n) / (n * (n - 1))
    return out
