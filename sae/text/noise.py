"""Documents of tokens that are drawn at random, for dictionaries of noise."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np

from sae.text.corpus import Document, NoiseText


def noise_documents(source: NoiseText, tokenizer: Any) -> Iterator[Document]:
    """Documents of token ids, each a function of seed and number alone; special tokens are left out.

    From Noise to Narrative (Suresh et al. 2025, arXiv 2509.06938) trains on images of noise; uniform tokens are our reading for
    text.
    """
    ids = np.setdiff1d(np.array(sorted(set(tokenizer.get_vocab().values()))), tokenizer.all_special_ids)
    for number in count():
        rng = np.random.default_rng([source.seed, number])
        yield Document(f"noise#{number}", rng.choice(ids, source.tokens_per_document).tolist())
