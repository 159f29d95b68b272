"""Sparse codes of a text: the latents of every token, one after another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer


class Codes(NamedTuple):
    """A text in contexts and its sparse codes, in the order of the tokens.

    Token t of the flat text has the latents `indices[starts[t] : starts[t + 1]]`, with their activations, all above 0.
    A token that fires a thousand latents takes their room, and no other token does.
    """

    ids: Integer[np.ndarray, "contexts ctx_len"]
    documents: Integer[np.ndarray, "contexts ctx_len"]
    starts: Int[np.ndarray, " tokens_and_one"]
    indices: Integer[np.ndarray, " firings"]
    acts: Float[np.ndarray, " firings"]

    def starts_of(self, contexts: slice) -> Int[np.ndarray, " tokens_and_one"]:
        """Where the latents of these contexts' tokens start, and where the last ones end."""
        first, stop, _ = contexts.indices(len(self.ids))
        return self.starts[first * self.ids.shape[1] : stop * self.ids.shape[1] + 1]

    def latents_of(self, tokens: slice) -> slice:
        """The part of `indices` and `acts` that consecutive tokens of the flat text have."""
        return slice(int(self.starts[tokens.start]), int(self.starts[tokens.stop]))


def codes_of_rows(
    ids: Integer[np.ndarray, "contexts ctx_len"],
    documents: Integer[np.ndarray, "contexts ctx_len"],
    indices: Integer[np.ndarray, "contexts ctx_len k"],
    acts: Float[np.ndarray, "contexts ctx_len k"],
) -> Codes:
    """Codes from rows of k latents for every token; those whose activation is not above 0 are left out."""
    fired: Bool[np.ndarray, "contexts ctx_len k"] = acts > 0
    return Codes(ids, documents, starts_from(fired.sum(2).reshape(-1)), indices=indices[fired], acts=acts[fired])


def starts_from(counts: Integer[np.ndarray, " tokens"]) -> Int[np.ndarray, " tokens_and_one"]:
    """Where the latents of every token start, from how many it has; the last number is how many there are."""
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts
