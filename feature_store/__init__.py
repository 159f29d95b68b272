"""The feature store: its tables, its records, its files, and every read. Training and serving share it."""

import os

# Before DuckDB is loaded: it writes the unused ends of blocks as they lie in memory. With zeros there, the same rows are
# the same bytes, and nothing of this process's memory gets into a published file.
os.environ.setdefault("DUCKDB_JE_MALLOC_CONF", "zero:true")
