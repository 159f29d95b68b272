"""Which held-out positions end a phrase that the training text holds as well: a dictionary may know them by heart."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, UInt

from sae.stream.activations import Activations
from sae.text.tokens import Contexts

PHRASE = 16  # tokens
CONTEXTS = 4096  # read at a time
BASE = np.uint64(0x9E3779B97F4A7C15)


@lru_cache(maxsize=2)
def seen_before(held_out: Activations) -> Bool[np.ndarray, " tokens"]:
    """Whether the last 16 tokens up to each held-out position occur in the training text, inside one context.

    Positions with fewer tokens before them in their context count as new. Phrases are compared by 64-bit hashes.
    """
    hashes = _phrases(held_out.contexts, 0, held_out.contexts.n_contexts)
    seen = np.zeros(hashes.shape, bool)
    training = held_out.training
    if training is None:
        return seen.reshape(-1)

    wanted = np.unique(hashes[:, PHRASE - 1 :])
    for start in range(0, training.contexts.n_contexts, CONTEXTS):
        read = _phrases(training.contexts, start, start + CONTEXTS)[:, PHRASE - 1 :]
        seen[:, PHRASE - 1 :] |= np.isin(hashes[:, PHRASE - 1 :], np.intersect1d(wanted, read))

    return seen.reshape(-1)


def _phrases(contexts: Contexts, start: int, stop: int) -> UInt[np.ndarray, "contexts ctx_len"]:
    """A hash of the last tokens up to every position, at most `PHRASE` of them."""
    ids = contexts.ids[start : min(stop, contexts.n_contexts)].astype(np.uint64) + np.uint64(1)
    hashes = np.zeros(ids.shape, np.uint64)
    for back in reversed(range(PHRASE)):
        hashes[:, back:] = hashes[:, back:] * BASE + ids[:, : max(0, ids.shape[1] - back)]
    return hashes
