"""Rows of a generation that several processes write to Parquet, and one process joins."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from feature_store.writer import GenerationWriter

TABLES = ("feature", "context_pack", "feature_token", "feature_bigram")


class ShardWriter:
    """Writes the rows of one process, one file per insertion; files of an earlier attempt are removed."""

    def __init__(self, folder: Path, number: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.number, self._inserted = folder, number, 0
        for leftover in self._files():
            leftover.unlink()

    def _files(self) -> Iterable[Path]:
        return sorted(self.folder.glob(f"*-{self.number:05d}-*.parquet"))

    def insert(self, table: str, columns: dict[str, Any]) -> None:
        """Columns (lists or arrays of one length) for a table of the schema."""
        import pyarrow as pa
        from pyarrow import parquet

        rows = pa.table({name: pa.array(values) for name, values in columns.items()})
        parquet.write_table(rows, self.folder / f"{table}-{self.number:05d}-{self._inserted:05d}.parquet")
        self._inserted += 1


def merge(writer: GenerationWriter, folder: Path) -> None:
    """Appends all shards to their tables, in the order of processes and insertions."""
    for table in TABLES:
        for path in sorted(folder.glob(f"{table}-[0-9]*.parquet")):
            writer.insert_file(table, path)
