"""Interpretation: what explainers may look at, explanations, their held-out scores, concepts."""
