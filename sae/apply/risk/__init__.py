"""Which latents of a text foretell a score of it."""
