"""The 113 binary text classification sets that the sae-probes wheel contains; read from the wheel, never imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from sae.foundation.downloads import PackagePart, cache_dir, open_members

PART = PackagePart(
    name="sae-probes",
    version="0.4.2",
    archive_sha256="245700c8df310760e3d5b23d657ae5196489813f3012b55975057d8239d8be03",
    member="sae_probes/data/cleaned_data/*.csv.zst",
)


class TextSet(NamedTuple):
    """A labelled set: balanced samples for training and testing, labels 0 and 1."""

    name: str
    train: list[str]
    train_labels: Int[np.ndarray, " train"]
    test: list[str]
    test_labels: Int[np.ndarray, " test"]


def _unpacked() -> list[Path]:
    folder = cache_dir() / "probing" / PART.archive_sha256
    completion_marker = folder / "complete"
    if not completion_marker.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name, stream in open_members(PART):
            (folder / Path(name).name).write_bytes(stream.read())
        completion_marker.touch()
    return sorted(folder.glob("*.csv.zst"))


def _sampled(name: str, rows: list[tuple[str, str]], n_train: int, n_test: int, *, rng: np.random.Generator) -> TextSet:
    """Balanced samples without overlap; a small set is used up in the same proportion."""
    classes = [[text for text, label in rows if label == kind] for kind in sorted({label for _, label in rows})]
    share = min(1.0, min(map(len, classes)) / ((n_train + n_test) // 2))
    train_each, test_each = int(n_train // 2 * share), int(n_test // 2 * share)
    train, test = [], []

    for label, texts in enumerate(classes):
        order = rng.permutation(len(texts))
        train += [(texts[i], label) for i in order[:train_each]]
        test += [(texts[i], label) for i in order[train_each : train_each + test_each]]

    parts = [([t for t, _ in part], np.array([label for _, label in part])) for part in (train, test)]

    return TextSet(name, *parts[0], *parts[1])


def text_sets(n_train: int, n_test: int, seed: int) -> Iterator[TextSet]:
    """Every binary set of the wheel, downloaded once and pinned by its SHA-256."""
    import duckdb

    connection = duckdb.connect()
    for path in _unpacked():
        query = f"select prompt, target::varchar from read_csv('{path}', sample_size=-1) where prompt is not null"
        rows = connection.execute(query).fetchall()
        if len({label for _, label in rows}) == 2:
            rng = np.random.default_rng([seed, *path.name.encode()])
            yield _sampled(path.name.removesuffix(".csv.zst"), rows, n_train, n_test, rng=rng)
