"""The language model: loaded, its hook points found, its tokens spelled out, its gradients changed by rules."""
