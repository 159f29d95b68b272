"""A recommender as a language model over items, and what a dictionary of it holds."""
