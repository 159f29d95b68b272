"""What `sae select` writes: the chosen documents, and which latents made them be chosen."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from feature_store.results.findings import Finding, Table
from sae.apply.finding import figure, table, write_finding
from sae.apply.selection.vectors import SIMILARITIES, Prototype, Ranked, prototype_of, vectors_in, write_selected
from sae.apply.text_codes import TextReader
from sae.errors import ArtefactError, ConfigError, DataError
from sae.foundation.files import read_json, write_json
from sae.foundation.screen import Screen
from sae.publish.dictionary import read_card
from sae.text.brought import named_texts, some_texts

EXAMPLES, SHOWN, FEATURES = 1000, 50, 30
VECTORS, MADE_OF, SELECTED = "documents.duckdb", "made_of.json", "selected.parquet"


@dataclass(frozen=True)
class SelectionSettings:
    """Examples, corpus (both files), and how much of the corpus to choose by which similarity."""

    like: str
    corpus: str
    share: float = 0.05
    similarity: str = "jaccard"
    contexts: int = 4

    def check(self) -> None:
        """Raises `ConfigError` for settings that make no sense."""
        if not 0 < self.share <= 1:
            raise ConfigError(f"--share: {self.share}; give a share of the corpus above 0 and up to 1, such as 0.05.")
        if self.contexts < 1:
            raise ConfigError(f"--contexts: {self.contexts}; at least 1 context of every document is read.")
        if self.similarity not in SIMILARITIES:
            raise ConfigError(f"--similarity: {self.similarity!r}; allowed are {', '.join(SIMILARITIES)}.")


def selection_finding(
    folder: Path, name: str, reader: TextReader, settings: SelectionSettings, *, out: Path, screen: Screen
) -> Finding:
    """Reads examples and corpus, writes selected.parquet into `out`, and the finding `name` of the dictionary."""
    _check_vectors(folder, reader, settings, out)
    examples = some_texts(settings.like, EXAMPLES)
    prototype = prototype_of(reader, examples)

    with vectors_in(out / VECTORS) as vectors:
        with screen.progress("documents", 0, "documents") as progress:
            vectors.read(reader, named_texts(settings.corpus), lambda n: progress.update(n, n))
        n_documents = len(vectors)
        if not n_documents:
            raise DataError(f"{settings.corpus}: holds no text.")
        n_chosen = max(1, round(settings.share * n_documents))
        ranked = vectors.ranked(prototype, n_chosen, settings.similarity)  # pyright: ignore[reportArgumentType]

    write_selected(out / SELECTED, ranked, named_texts(settings.corpus))
    scores = np.array([row.score for row in ranked])
    return write_finding(
        folder, name, system="select",
        title=f"Documents of {Path(settings.corpus).name} like {Path(settings.like).name}",
        summary=f"{len(ranked):,} of {n_documents:,} documents are nearest to {len(examples)} examples.",
        settings={**asdict(settings), "like": Path(settings.like).name, "corpus": Path(settings.corpus).name,
                  "examples": len(examples), "documents": n_documents},
        figures=[
            figure("highest similarity", float(scores[0]), "of the document that is nearest to the examples"),
            figure("lowest similarity chosen", float(scores[-1]), "of the last document that was chosen"),
        ],
        tables=[_features(prototype, ranked), _documents(ranked)],
    )  # fmt: skip


def _check_vectors(folder: Path, reader: TextReader, settings: SelectionSettings, out: Path) -> None:
    """Writes down what the vectors in a folder are made of; raises `ArtefactError` if they are of something else."""
    made_of = {
        "weights_sha256": read_card(folder).weights_sha256,
        "model_sha256": reader.lm.sha256,
        "corpus": settings.corpus,
        "contexts": settings.contexts,
    }
    path = out / MADE_OF
    if not path.exists():
        write_json(path, made_of)
        return
    stored = read_json(path)
    different = [key for key, value in made_of.items() if stored.get(key) != value]
    if different:
        raise ArtefactError(
            f"{out}: holds vectors made with another {', '.join(different)}. Give another --out, or remove that folder."
        )


def _features(prototype: Prototype, ranked: list[Ranked]) -> Table:
    chosen_for = Counter(feature for row in ranked for feature in row.features)
    rows = [[f, prototype.z[f], n, n / len(ranked)] for f, n in chosen_for.most_common(FEATURES)]
    columns = {"feature": "feature", "mean in the examples": "number", "documents": "number", "share": "number"}
    return table(
        "Features that made documents be chosen (one of the five shared most beyond the corpus)", columns, rows
    )


def _documents(ranked: list[Ranked]) -> Table:
    rows = [[row.name, row.score, row.features] for row in ranked[:SHOWN]]
    return table("Nearest documents", {"document": "text", "similarity": "number", "shared most": "features"}, rows)
