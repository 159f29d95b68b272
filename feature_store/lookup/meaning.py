"""Search by meaning: what is said of every feature as the vector of a sentence encoder, compared with a text's."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from feature_store.store import Store

Encode = Callable[[list[str]], Float[np.ndarray, "texts width"]]  # texts to unit vectors
QUOTED = re.compile("“([^”]*)”")
SOURCES = ("token", "keyphrase", "top_tokens", "next_token", "bigram", "prefix")  # what is quoted in their texts
BATCH, BLOCK = 1024, 65_536


class Near(NamedTuple):
    """A feature, and the cosine of what is said of it with a text."""

    feature: int
    cosine: float


class Meaning:
    """Vectors of what is said of features, by store; made once with `encode` and kept in `folder`."""

    def __init__(self, encode: Encode, folder: Path):
        self.encode, self.folder = encode, folder

    def vectors(self, store: Store) -> Float[np.ndarray, "features width"]:
        """A row for every feature, in 16 bits, mapped from its file; 0 for features of which nothing is said."""
        path = self.folder / f"{store.generation}.npy"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            building = path.with_suffix(f".{os.getpid()}.building")
            with building.open("wb") as file:
                np.save(file, self._encoded(texts_of(store)))
            building.replace(path)
        return np.load(path, mmap_mode="r")

    def _encoded(self, texts: list[str]) -> Float[np.ndarray, "features width"]:
        parts = []
        for start in range(0, len(texts), BATCH):
            part = texts[start : start + BATCH]
            rows = self.encode([text or " " for text in part]).astype(np.float16)
            rows[[not text for text in part]] = 0
            parts.append(rows)
        return np.concatenate(parts)

    def nearest(self, store: Store, text: str, limit: int) -> list[Near]:
        """The features whose words mean most nearly what the text does."""
        query = self.encode([text])[0].astype(np.float32)
        vectors = self.vectors(store)
        blocks = (vectors[start : start + BLOCK].astype(np.float32) @ query for start in range(0, len(vectors), BLOCK))
        cosines = np.concatenate(list(blocks))
        best = np.argsort(-cosines, kind="stable")[:limit]
        return [Near(int(feature), float(cosines[feature])) for feature in best if cosines[feature] > 0]


def texts_of(store: Store) -> list[str]:
    """The words that every feature's explanations quote, each once; its label if that quotes none."""
    query = "select feature, explainer, text, chosen from explanation order by feature, chosen desc, id"
    words: dict[int, dict[str, None]] = {}
    for feature, explainer, text, chosen in store.cursor().execute(query).fetchall():
        quoted = QUOTED.findall(text) if explainer in SOURCES else []
        said = quoted or ([text] if chosen or explainer not in SOURCES else [])
        words.setdefault(feature, {}).update(dict.fromkeys(word for part in said for word in part.split()))
    return [" ".join(words.get(feature, ())) for feature in range(store.n_features)]
