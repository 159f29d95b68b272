"""How much memory and disk an index will take, known before it is built."""

from __future__ import annotations

from typing import NamedTuple

from feature_store.indexing.tables import BYTES_PER_FIRING

TOKEN_BYTES = 80  # documents, where latents start, parts, positions, formats, sorted pairs of neighbours, words
FEATURE_BYTES = 32_000  # kept contexts, counts of tokens and pairs, windows on their way to the store


class Budget(NamedTuple):
    """Bytes of memory that the index will hold, and bytes of codes on disk, which the system may keep in memory too."""

    memory: int
    codes: int

    def __str__(self) -> str:
        return f"at most {_said(self.memory)} of memory, and {_said(self.codes)} of codes on disk"


def _said(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def budget(n_tokens: int, width: int, d_sae: int, memory_bytes: int) -> Budget:
    """The budget of `n_tokens` tokens with `width` latents each, if the firings held at a time may take `memory_bytes`.

    memory = 80 tokens + 32,000 features + min(memory_bytes, 24 firings); codes = (4 + 2 or 4) tokens width.
    """
    firings = min(memory_bytes, BYTES_PER_FIRING * n_tokens * width)
    latent = 2 if d_sae <= 1 << 16 else 4
    return Budget(TOKEN_BYTES * n_tokens + FEATURE_BYTES * d_sae + firings, n_tokens * width * (4 + latent))
