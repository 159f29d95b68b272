"""Rules over the concepts that a dictionary sees in texts."""
