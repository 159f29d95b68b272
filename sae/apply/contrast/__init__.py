"""What tells two sets of texts apart: features, a sparse map, the control vector."""
