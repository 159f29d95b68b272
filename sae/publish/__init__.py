"""The published dictionary folder: card and weights, the feature store, Parquet files."""
