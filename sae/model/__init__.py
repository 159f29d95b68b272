"""The language model: loads it, finds its hook points, spells out its tokens, and changes its gradients by rules."""
