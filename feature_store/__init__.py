"""The feature store: its tables, its records, its files, and every read. Training and serving share it."""
