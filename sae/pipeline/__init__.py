"""A whole run: the config, the stages in order, the log, the summary."""
