"""Documents like a few examples: vectors in DuckDB, and which latents made a document be chosen."""
