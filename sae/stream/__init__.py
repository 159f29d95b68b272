"""The stream of activations: harvested from the model, kept on disk or not, shuffled across contexts."""
