"""A table of features as a Parquet file, written by DuckDB."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import numpy as np
from jaxtyping import Integer

from feature_store.engine import quoted
from feature_store.lookup.columns import NUMBERS
from feature_store.pointer import DATABASES
from feature_store.store import Store

MEMORY = "200MB"


def parquet_table(store: Store, features: Integer[np.ndarray, " features"]) -> bytes:
    """The rows of some features, in their order, as Parquet: the columns of `FeatureRow`."""
    numbers = ", ".join(f"{sql} as {name}" for name, sql in NUMBERS.items())
    rows = f"""select w.feature, l.text as label, l.explainer, {numbers} from wanted w join feature f using (feature)
        left join label l using (feature) order by w.place"""
    with TemporaryDirectory(prefix="saedex-") as folder, closing(duckdb.connect()) as connection:
        allowed = ", ".join(quoted(str(path.absolute())) for path in (store.folder, Path(folder)))
        connection.execute(
            f"set threads=1; set memory_limit='{MEMORY}'; set autoinstall_known_extensions=false;"
            f"set temp_directory={quoted(folder)}; set allowed_directories=[{allowed}];"
            "set enable_external_access=false; set lock_configuration=true"
        )
        published = [kind for kind in DATABASES if kind in store.pointer]
        for kind in published:
            path = (store.folder / store.pointer[kind]["file"]).absolute()
            connection.execute(f"attach {quoted(str(path))} as {kind} (read_only)")
        if "explanations" not in published:
            connection.execute("create table label (feature uinteger, text varchar, explainer varchar, score double,"
                               " low double, high double, n_pos uinteger, f2 double)")  # fmt: skip
        connection.execute("create table wanted (feature uinteger, place uinteger)")
        connection.execute(f"set search_path='memory.main,{','.join(f'{kind}.main' for kind in published)}'")
        connection.execute(
            "insert into wanted select unnest(?::uinteger[]), unnest(range(?::bigint))",
            [features.tolist(), len(features)],
        )
        target = Path(folder) / "features.parquet"
        connection.execute(f"copy ({rows}) to {quoted(str(target))} (format parquet, compression zstd)")
        return target.read_bytes()
