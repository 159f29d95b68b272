"""Training: the loop over the stream, one dictionary under training, its hand-written update, checkpoints."""
