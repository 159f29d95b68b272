"""Evaluation: measures of a dictionary on held-out documents, the report, and data whose features are known."""
