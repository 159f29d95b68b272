"""How many latents fire as text loses its order: contexts whose sentences or blocks are shuffled, and random tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae.architectures.settings import batch_of
from sae.evaluation.measure import Measure
from sae.evaluation.subject import Subject
from sae.foundation.metrics import spearman
from sae.interpret.intervals import mean

CONTEXTS = 64
BLOCKS = {"blocks_16": 16, "blocks_4": 4, "blocks_1": 1}  # tokens that stay together
SENTENCE_END = re.compile(r"[.!?\u2026][\"'\u201d\u2019)\]]*\s*$")


def scrambled(
    ids: Int[np.ndarray, "contexts ctx_len"], block: int, rng: np.random.Generator
) -> Int[np.ndarray, "contexts ctx_len"]:
    """The contexts with their blocks of tokens shuffled; the first token, which may be special, stays where it is."""
    return _shuffled(ids, rng, lambda row: range(1, len(row), block))


def with_shuffled_sentences(
    ids: Int[np.ndarray, "contexts ctx_len"], tokenizer: Any, rng: np.random.Generator
) -> Int[np.ndarray, "contexts ctx_len"]:
    """The contexts with their sentences shuffled: what lies between tokens that end with a full stop, or the like."""
    ends = [token for token in np.unique(ids).tolist() if SENTENCE_END.search(tokenizer.decode([token]))]
    return _shuffled(ids, rng, lambda row: [1, *(np.flatnonzero(np.isin(row[1:-1], ends)) + 2).tolist()])


def _shuffled(
    ids: np.ndarray, rng: np.random.Generator, starts_of: Callable[[np.ndarray], Iterable[int]]
) -> np.ndarray:
    out = ids.copy()
    for row in out:
        starts = [*starts_of(row), len(row)]
        parts = [row[start:end].copy() for start, end in pairwise(starts)]
        row[1:] = np.concatenate([parts[place] for place in rng.permutation(len(parts))])
    return out


class Scrambling(Measure):
    """Active latents per token on held-out contexts, on the same with shuffled sentences and blocks of 16, 4 and 1 tokens, and
    on uniform random tokens (From Noise to Narrative, Suresh et al. 2025, arXiv 2509.06938).

    A latent is active if it fires; where the architecture fixes how many do, if its pre-activation exceeds the mean of the
    smallest one kept on whole contexts.
    """

    order = 40
    meanings: ClassVar[dict[str, str]] = {
        "scrambling.active.whole": "active latents per token on held-out text",
        "scrambling.active.sentences": "the same, sentences shuffled",
        "scrambling.active.blocks_16": "the same, blocks of 16 tokens shuffled",
        "scrambling.active.blocks_4": "the same, blocks of 4 tokens shuffled",
        "scrambling.active.blocks_1": "the same, single tokens shuffled",
        "scrambling.active.random": "the same on tokens drawn at random",
        "scrambling.growth": "active latents on shuffled tokens less those on whole contexts, mean over contexts",
        "scrambling.growth_low": "lower end of its 95 % interval",
        "scrambling.growth_high": "upper end of its 95 % interval",
        "scrambling.spearman": "rank correlation of disorder (whole to random) with active latents; 1: it always grows",
    }

    @torch.no_grad()
    def measure(self, subject: Subject) -> dict[str, Any]:
        """See `meanings`."""
        rng = np.random.default_rng(subject.seed)
        whole = subject.held_out.contexts.ids[:CONTEXTS].astype(np.int64)
        tokens = subject.lm.scored_ids.numpy()
        variants = {"whole": whole, "sentences": with_shuffled_sentences(whole, subject.lm.tokenizer, rng)}
        variants |= {name: scrambled(whole, block, rng) for name, block in BLOCKS.items()}
        drawn = rng.choice(np.setdiff1d(tokens, subject.lm.special_ids), whole.shape)
        variants["random"] = np.concatenate([whole[:, :1], drawn[:, 1:]], axis=1)

        threshold = _threshold(subject, whole) if subject.sae.selects == "k_per_token" else None
        active = {}
        for number, (name, ids) in enumerate(variants.items()):
            active[name] = _active(subject, ids, threshold)
            subject.progress.update(number + 1, len(variants))

        growth = mean((active["blocks_1"] - active["whole"]).numpy())
        means = {name: float(values.mean()) for name, values in active.items()}
        disorder = torch.arange(len(means), dtype=torch.float64)
        ranks = spearman(disorder, torch.tensor(list(means.values()), dtype=torch.float64))
        figures = {"growth": growth.value, "growth_low": growth.low, "growth_high": growth.high, "spearman": ranks}

        return {"scrambling": {"active": means, **figures, "contexts": len(whole)}}


def _rows(subject: Subject, ids: np.ndarray) -> tuple[Tensor, Tensor]:
    """What the dictionary reads of some contexts [n, d_in], and the context of each row [n]."""
    harvested = subject.held_out.harvester.harvest(ids, np.zeros_like(ids))
    batch = batch_of(subject.sae.config, {channel: x[harvested.keep] for channel, x in harvested.x.items()})
    return batch.x, harvested.keep.nonzero()[:, 0]


def _threshold(subject: Subject, ids: np.ndarray) -> float:
    code = subject.sae.encode(_rows(subject, ids)[0])
    return float(code.top_acts.amin(1).mean())


def _active(subject: Subject, ids: np.ndarray, threshold: float | None) -> Tensor:
    """Mean number of active latents per token of every context."""
    sae = subject.sae
    x, context = _rows(subject, ids)
    if threshold is None:
        counts = (sae.encode(x).top_acts > 0).sum(1)
    else:
        rows = sae.prepared(x).x.split(1024)
        counts = torch.cat([(sae.pre_acts(sae.centre(part)) > threshold).sum(1) for part in rows])
    sums = torch.zeros(len(ids), dtype=torch.float64, device=x.device).index_add_(0, context, counts.double())
    n = torch.bincount(context, minlength=len(ids)).clamp_min(1)

    return (sums / n).cpu()
