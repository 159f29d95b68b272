"""attributions.duckdb: where firings of an attention dictionary come from, a row per firing, beside its finding."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import duckdb

from feature_store.engine import quoted

FILE_NAME = "attributions.duckdb"
MEMORY = "100MB"


class Attribution(NamedTuple):
    """One firing of a feature: the tokens of its context up to there, and what each position and each head contributes.

    `position` counts the tokens of the document before the firing; the context may begin in an earlier document.
    """

    feature: int
    rank: int
    document: int
    position: int
    act: float
    token_ids: list[int]
    by_source: list[float]
    by_head: list[float]


def write_attributions(folder: Path, rows: Iterable[Attribution]) -> None:
    """Writes the file into the folder of a finding, in place of one that is there."""
    path, temporary = folder / FILE_NAME, folder / f".{FILE_NAME}"
    temporary.unlink(missing_ok=True)
    with closing(duckdb.connect(str(temporary))) as connection:
        connection.execute(
            "create table attribution (feature uinteger, rank usmallint, document uinteger, position uinteger, act float, "
            "token_ids uinteger[], by_source float[], by_head float[])"
        )
        connection.execute("begin")
        for row in sorted(rows, key=lambda row: (row.feature, row.rank)):
            connection.execute("insert into attribution values (?, ?, ?, ?, ?, ?, ?, ?)", list(row))
        connection.execute("commit")
    os.replace(temporary, path)


def attributions_of(folder: Path, feature: int) -> list[Attribution]:
    """The rows of one feature, the strongest firing first; none if the folder has no such file."""
    path = folder / FILE_NAME
    if not path.is_file():
        return []
    with closing(duckdb.connect()) as connection:
        connection.execute(
            f"set threads=1; set memory_limit='{MEMORY}'; set autoinstall_known_extensions=false;"
            f"set allowed_directories=[{quoted(str(folder.absolute()))}]; set enable_external_access=false;"
            "set lock_configuration=true"
        )
        connection.execute(f"attach {quoted(str(path.absolute()))} as found (read_only)")
        rows = connection.execute(
            "select * from found.attribution where feature = ? order by rank", [feature]
        ).fetchall()
    return [Attribution(*row) for row in rows]
