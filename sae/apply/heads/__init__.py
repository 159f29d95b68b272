"""Where the latents of an attention dictionary come from: heads, source positions, latents of earlier layers."""
