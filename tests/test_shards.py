"""A generation that several processes write in shards holds what one process writes."""

from __future__ import annotations

import duckdb
import numpy as np
import pytest

from feature_store.indexing.budget import budget
from feature_store.indexing.contexts import ContextLimits
from feature_store.indexing.generation import Directions, Limits, corpus_of, publish, write_shard
from sae.benchmarks.index import Size, _directions, _vocabulary, random_codes
from sae.foundation.device import PeakMemory

SIZE = Size(300, 6, 32, 500, ())
LIMITS = Limits(ContextLimits(5, 2), 8, 3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    codes = random_codes(SIZE, 20_000, tmp_path_factory.mktemp("codes"))
    names = [f"document {d}" for d in range(int(codes.documents.max()) + 1)]
    return corpus_of(codes, _vocabulary(SIZE), names, document_keys=np.arange(len(names), dtype=np.uint64))


def directions() -> Directions:
    neighbours = (np.arange(SIZE.latents)[:, None] + np.arange(1, 11)) % SIZE.latents
    return _directions(SIZE)._replace(neighbours=neighbours)


def rows(store, name):
    with duckdb.connect(str(store / name), read_only=True) as connection:
        names = connection.execute("select table_name from information_schema.tables order by 1").fetchall()
        return {t: sorted(connection.execute(f"select * from {t}").fetchall(), key=repr) for (t,) in names}


def test_shards_put_together_are_the_whole(corpus, tmp_path):
    whole = rows(tmp_path / "one", publish(tmp_path / "one", corpus, directions(), LIMITS, facts={"a": 1}))
    shards = tmp_path / "shards"
    write_shard(
        shards, 1, corpus, directions(), limits=LIMITS, features=slice(0, 300)
    )  # of an attempt that was given up
    for number, part in enumerate((slice(0, 1), slice(1, 170), slice(170, 300))):
        write_shard(shards, number, corpus, directions(), limits=LIMITS, features=part)
    joined = rows(
        tmp_path / "many", publish(tmp_path / "many", corpus, directions(), LIMITS, facts={"a": 1}, shards=shards)
    )
    assert whole.keys() == joined.keys() and len(whole["feature"]) == SIZE.latents and whole["feature_bigram"]
    for table, expected in whole.items():
        assert joined[table] == expected, table


def test_an_index_takes_no_more_memory_than_stated(corpus, tmp_path):
    publish(tmp_path / "first", corpus, directions(), LIMITS, facts={})  # what is loaded once is not counted
    limits = LIMITS._replace(memory_bytes=1_000_000)
    with PeakMemory() as memory:
        publish(tmp_path / "store", corpus, directions(), limits, facts={})
    stated = budget(corpus.codes.ids.size, SIZE.k, SIZE.latents, limits.memory_bytes)
    assert memory.peak_bytes < stated.memory + 64_000_000  # libraries hold some of their own
    assert stated.codes >= corpus.codes.indices.nbytes + corpus.codes.acts.nbytes > 0.9 * stated.codes
    assert "MiB of memory" in str(stated) and "GiB of codes" in str(budget(10_000_000, 32, 1 << 15, 1 << 31))
