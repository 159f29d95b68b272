"""How a feature store is built: sparse codes of a corpus become contexts, counts, windows, and a published generation."""
