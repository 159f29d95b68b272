"""Which documents of a corpus are like a few examples: by the latents that fire in them, ranked in DuckDB.

A document's vector is the mean of its tokens' codes, the prototype the mean of the examples' vectors, and the similarity
generalised Jaccard, J(z, p) = sum_i min(z_i, p_i) / sum_i max(z_i, p_i) (MONA, Ma et al. 2025, arXiv 2503.15573). As
sum max = sum z + sum p - sum min, only latents that both have are looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import duckdb
import numpy as np
import pyarrow as pa
from jaxtyping import Float

from sae.apply.text_codes import GROUP, TextReader
from sae.errors import DataError
from sae.text.brought import NamedText

Similarity = Literal["jaccard", "cosine", "euclid"]
SIMILARITIES: tuple[str, ...] = get_args(Similarity)
REASONS = 5
DIGITS = 9  # of a score: sums in parallel differ in the last ones
SCORES = {
    "jaccard": "coalesce(common, 0) / greatest(d.total + $total - coalesce(common, 0), 1e-30)",
    "cosine": "coalesce(product, 0) / greatest(d.length * $length, 1e-30)",
    "euclid": "-sqrt(greatest(d.length * d.length + $length * $length - 2 * coalesce(product, 0), 0))",
}
TABLES = """
create table if not exists document(document uinteger, name varchar, n_tokens uinteger, total double, length double);
create table if not exists latent_mean(document uinteger, latent uinteger, value float);
"""


class Prototype(NamedTuple):
    """The mean vector [d_sae] of the examples, and how many there are."""

    z: Float[np.ndarray, " d_sae"]
    n_examples: int


class Ranked(NamedTuple):
    """One document: its number in the corpus, its name, its similarity, and what it shares with the prototype."""

    document: int
    name: str
    score: float
    features: list[int]


def prototype_of(reader: TextReader, examples: list[str]) -> Prototype:
    """The mean of the examples' vectors; raises `DataError` for an example of which no token is read."""
    means = reader.read_every(examples).means()
    return Prototype(np.asarray(means.mean(axis=0)).ravel().astype(np.float32), len(examples))


class DocumentVectors:
    """The vectors of a corpus in a DuckDB file, which grows as documents are read: what is stored is not read again."""

    def __init__(self, path: Path, memory_bytes: int = 2_000_000_000):
        self._connection = duckdb.connect(str(path), config={"memory_limit": f"{memory_bytes}B"})
        self._connection.execute(TABLES)

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def __len__(self) -> int:
        return self._one("select count(*) from document")

    def _one(self, query: str) -> int:
        row = self._connection.execute(query).fetchone()
        assert row is not None
        return row[0]

    def read(self, reader: TextReader, texts: Iterable[NamedText], tell: Callable[[int], None]) -> None:
        """Stores the vectors of all documents after those that are stored; `tell` hears how many there are."""
        texts = itertools.islice(iter(texts), len(self), None)
        while group := list(itertools.islice(texts, GROUP)):
            self._append(reader, group)
            tell(len(self))

    def _append(self, reader: TextReader, group: list[NamedText]) -> None:
        """Stores some documents, all of them or none."""
        first = len(self)
        codes = reader.read(text for _, text in group)
        means = codes.means().tocoo()
        numbers = np.arange(first, first + len(group), dtype=np.uint32)
        squares = np.bincount(means.coords[0], means.data.astype(np.float64) ** 2, minlength=len(group))
        documents = pa.table({  # noqa: F841  (DuckDB reads the variable)
            "document": numbers, "name": [name for name, _ in group], "n_tokens": codes.n_tokens.astype(np.uint32),
            "total": np.bincount(means.coords[0], means.data, minlength=len(group)), "length": np.sqrt(squares),
        })  # fmt: skip
        latents = pa.table({  # noqa: F841
            "document": (means.coords[0] + first).astype(np.uint32), "latent": means.coords[1].astype(np.uint32),
            "value": means.data.astype(np.float32),
        })  # fmt: skip
        self._connection.execute("begin")
        self._connection.execute("insert into document select * from documents")
        self._connection.execute("insert into latent_mean select * from latents")
        self._connection.execute("commit")

    def ranked(self, prototype: Prototype, n: int, similarity: Similarity = "jaccard") -> list[Ranked]:
        """The `n` documents nearest to a prototype, the nearest first; of equal ones the earlier first."""
        if similarity not in SIMILARITIES:
            raise DataError(f"similarity {similarity!r}; allowed are {', '.join(SIMILARITIES)}.")

        self._put(prototype)
        rows = self._connection.execute(
            f"""with shared as (
                select document, sum(least(m.value, p.value)::double) common, sum(m.value::double * p.value) product
                from latent_mean m join prototype p using (latent) group by document)
            select d.document, d.name, round({SCORES[similarity]}, {DIGITS}) score
            from document d left join shared s using (document)
            where d.n_tokens > 0 order by score desc, d.document limit {int(n)}""",
            _numbers_for(similarity, prototype),
        ).fetchall()
        reasons = self._reasons([row[0] for row in rows])
        return [Ranked(*row, features=reasons.get(row[0], [])) for row in rows]

    def _put(self, prototype: Prototype) -> None:
        latents = np.flatnonzero(prototype.z).astype(np.uint32)
        vector = pa.table({"latent": latents, "value": prototype.z[latents].astype(np.float32)})  # noqa: F841
        self._connection.execute("create or replace temp table prototype as select * from vector")

    def _reasons(self, documents: list[int]) -> dict[int, list[int]]:
        """By document, the latents of which it shares most with the prototype beyond what the whole corpus shares on average.

        Without that, the latents of frequent words would be the reason for every document.
        """
        picked = pa.table({"document": np.array(documents, np.uint32)})  # noqa: F841
        rows = self._connection.execute(
            f"""with usual as (
                select latent, sum(least(m.value, p.value)::double) / $n as value
                from latent_mean m join prototype p using (latent) group by latent)
            select document, list(latent order by least(m.value, p.value) - u.value desc, latent)[:{REASONS}]
            from latent_mean m join prototype p using (latent) join usual u using (latent) join picked using (document)
            where least(m.value, p.value) > u.value group by document""",
            {"n": max(1, len(self))},
        ).fetchall()
        return dict(rows)


def _numbers_for(similarity: Similarity, prototype: Prototype) -> dict[str, float]:
    z = prototype.z.astype(np.float64)
    return {"total": float(z.sum())} if similarity == "jaccard" else {"length": float(np.sqrt((z * z).sum()))}


def write_selected(path: Path, ranked: list[Ranked], texts: Iterable[NamedText]) -> None:
    """Writes the chosen documents, nearest first, as a Parquet file with name, score, features and text.

    Texts are read in the order of the corpus and sorted on disk, so that not all of them are in memory.
    """
    import pyarrow.parquet as pq

    place_of = {row.document: place for place, row in enumerate(ranked)}
    chosen = ((place_of[n], text) for n, (_, text) in enumerate(texts) if n in place_of)
    unsorted, ready = path.with_suffix(".unsorted"), path.with_suffix(".writing")
    schema = pa.schema({"place": pa.uint32(), "text": pa.string()})
    with pq.ParquetWriter(unsorted, schema) as writer:
        while group := list(itertools.islice(chosen, GROUP)):
            places, bodies = zip(*group, strict=True)
            writer.write_table(pa.table({"place": places, "text": bodies}, schema=schema))

    with closing(duckdb.connect()) as connection:
        rows = pa.table({  # noqa: F841  (DuckDB reads the variables)
            "place": np.arange(len(ranked), dtype=np.uint32), "document": [row.document for row in ranked],
            "name": [row.name for row in ranked], "score": [row.score for row in ranked],
            "features": [row.features for row in ranked],
        })  # fmt: skip
        bodies_on_disk = connection.read_parquet(str(unsorted))  # noqa: F841
        query = (
            "select document, name, score, features, text from rows join bodies_on_disk using (place) order by place"
        )
        connection.sql(query).write_parquet(str(ready), compression="zstd")
    unsorted.unlink()
    ready.replace(path)


def jaccard(one: Float[np.ndarray, " d_sae"], other: Float[np.ndarray, " d_sae"]) -> float:
    """J of two vectors, the plain way; 1 for two that are zero."""
    most = float(np.maximum(one, other).sum())
    return float(np.minimum(one, other).sum()) / most if most > 0 else 1.0


def vectors_in(path: Path) -> closing[DocumentVectors]:
    """The vectors in a file, which is closed at the end of the block."""
    return closing(DocumentVectors(path))
