"""What people do with a trained dictionary: attribute attention, define concepts by example."""
