"""What components and latents do to a prediction: attributions by gradients, held to true patching."""
