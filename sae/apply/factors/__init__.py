"""Semi-nonnegative factors of an MLP's hidden activations, as another kind of dictionary."""
